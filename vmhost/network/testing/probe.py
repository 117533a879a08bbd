"""Somebody in a network namespace: one JSON command a line on stdin, one JSON answer a line on stdout.

listen {protocol, port, address?}      answers {}; from then on every TCP connection, datagram or (protocol raw) TCP packet there is remembered
seen {port}                            answers {seen: [source address..]} and forgets them
wait {port, source?}                   answers {} once something (from there) was seen at that port, forgets nothing
tcp {address, port, source?, silent?}  answers {result: connected|ENAME, text: {peer, mss} of a `listen`}
udp {address, port, source?, sourcePort?, count?}   sends; answers {}
ping {address}                         answers {result: reply|ENAME}
pathMtu {address}                      sends 1500 bytes with DF; answers {mtu} when the path's MTU came back
frame {hex}                            sends one Ethernet frame on eth0; answers {}
reset {address, port}                  sends a TCP RST that belongs to no connection; answers {}
hold {address, port}                   opens a TCP connection and keeps it; `echo` {text} sends and answers {text}
"""
import errno, json, os, select, socket, struct, sys, threading, time

LIMIT_S = 8  # Of every wait: a refusal is answered at once, and a test that needs this long has failed.
lock = threading.Condition()
seen = {}
held = {}


def name(error):
    return errno.errorcode.get(error.errno or 0, "TIMEOUT") if not isinstance(error, TimeoutError) else "TIMEOUT"


def note(port, address):
    with lock:
        seen.setdefault(port, []).append(address)
        lock.notify_all()


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listen(protocol, port, address="0.0.0.0"):
    if protocol == "raw":
        return listen_raw(port)
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    s = socket.socket(family(address), kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    s.setsockopt(socket.SOL_SOCKET, 33, 2**22)  # SO_RCVBUFFORCE: nothing may get lost here
    s.bind((address, port))

    def serve_connection(c, peer):
        mss = c.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        c.sendall(json.dumps({"peer": peer, "mss": mss}).encode() + b"\n")
        try:
            while text := c.recv(65536):
                c.sendall(text)
        except OSError:
            pass  # The peer went away without a word.
        c.close()

    def serve():
        while True:
            if protocol == "tcp":
                c, peer = s.accept()
                note(port, peer[0])
                threading.Thread(target=serve_connection, args=(c, peer[0]), daemon=True).start()
            else:
                note(port, s.recvfrom(65536)[1][0])

    if protocol == "tcp":
        s.listen(64)
    threading.Thread(target=serve, daemon=True).start()
    return {}


def listen_raw(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)

    def serve():
        while True:
            packet, peer = s.recvfrom(65536)
            if struct.unpack("!H", packet[22:24])[0] == port:
                note(port, peer[0])

    threading.Thread(target=serve, daemon=True).start()
    return {}


def checksum(packet):
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def reset(address, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    s.connect((address, 0))
    header = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 4, 0, 0, 0)  # RFC 9293, 3.1; RST
    pseudo = socket.inet_aton(s.getsockname()[0]) + socket.inet_aton(address) + struct.pack("!HH", 6, len(header))
    s.send(header[:16] + struct.pack("!H", checksum(pseudo + header)) + header[18:])
    return {}


def tcp(address, port, source=None, silent=False):
    s = socket.socket(family(address), socket.SOCK_STREAM)
    s.settimeout(LIMIT_S)
    try:
        if source:
            s.bind((source, 0))
        s.connect((address, port))
        text = "" if silent else s.recv(4096).decode()
        return {"result": "connected", "text": text}
    except OSError as error:
        return {"result": name(error)}
    finally:
        s.close()


def udp(address, port, source="", sourcePort=0, count=1):
    for index in range(count):
        s = socket.socket(family(address), socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if source or sourcePort:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # A `listen` may have that port.
            s.bind((source, sourcePort))
        try:
            s.sendto(b"x", (address, port, 0, socket.if_nametoindex("eth0")) if address.startswith("fe80") else (address, port))
        except OSError:
            pass
        s.close()
    return {}


def ping(address):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    packet = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
    s.sendto(packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:], (address, 0))
    deadline = time.monotonic() + LIMIT_S
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([s], [], [], left)[0]:
            break
        got, peer = s.recvfrom(2048)
        kind = got[20]
        if kind == 0 and peer[0] == address:
            return {"result": "reply"}
        if kind == 3:
            return {"result": f"unreachable {got[21]}"}
    return {"result": "TIMEOUT"}


def path_mtu(address):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
    s.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    s.connect((address, 9))
    s.send(b"x" * 1472)
    poll = select.poll()
    poll.register(s, select.POLLERR)
    if not poll.poll(LIMIT_S * 1000):
        return {"mtu": 0}
    return {"mtu": s.getsockopt(socket.IPPROTO_IP, 14)}  # IP_MTU


def frame(hex):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.bind(("eth0", 0))
    s.send(bytes.fromhex(hex))
    return {}


def hold(address, port):
    s = socket.create_connection((address, port), LIMIT_S)
    held["file"] = s.makefile("rwb")
    return json.loads(held["file"].readline())


def echo(text):
    held["file"].write(text.encode() + b"\n")
    held["file"].flush()
    return {"text": held["file"].readline().decode().strip()}


def wait(port, source=None):
    with lock:
        done = lock.wait_for(lambda: any(source in (None, s) for s in seen.get(port, [])), LIMIT_S)
    return {"arrived": done}


def take(port):
    with lock:
        return {"seen": seen.pop(port, [])}


commands = {
    "listen": listen, "seen": take, "wait": wait, "tcp": tcp, "udp": udp, "ping": ping, "pathMtu": path_mtu,
    "frame": frame, "hold": hold, "reset": reset, "echo": echo,
}
for line in sys.stdin:
    command = json.loads(line)
    try:
        answer = commands[command.pop("do")](**command)
    except Exception as error:
        answer = {"error": repr(error)}
    print(json.dumps(answer), flush=True)
