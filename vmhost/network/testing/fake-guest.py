"""A fake: plays QEMU with a guest. Opens a tap as the machine's user, the way QEMU does, and is the cable to a network
card `eth0` in a namespace, whose Linux kernel plays the guest's. Usage: fake-guest.py TAP UID HOST_NAMESPACE GUEST_NAMESPACE

Prints `ready`, or `refused: REASON` and ends with status 1 when this user may not open the tap."""
import ctypes, fcntl, os, select, struct, sys

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace):
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def open_tap(name, uid):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    os.seteuid(uid)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    finally:
        os.seteuid(0)
    return fd


tap, uid, host, guest = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
enter(host)
try:
    outside = open_tap(tap, uid)
except OSError as error:
    print(f"refused: {error.strerror}", flush=True)
    sys.exit(1)
enter(guest)
inside = open_tap("eth0", 0)
print("ready", flush=True)
while True:
    readable, _, _ = select.select([outside, inside, sys.stdin], [], [])
    for fd in readable:
        if fd is sys.stdin:
            sys.exit(0)  # The test closed it, or died.
        try:
            os.write(inside if fd == outside else outside, os.read(fd, 70000))
        except OSError:
            pass  # The other end is down: a cable loses what nobody takes.
