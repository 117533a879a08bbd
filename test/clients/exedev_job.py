"""The main job of the published SDK for exe.dev, unmodified, at a Berth: python exedev_job.py URL IMAGE PART..

The token is in EXE_TOKEN, the certificate authority in SSL_CERT_FILE. RESOLVE=name=address is what DNS would say.
A part that is over prints its name; one that fails shows why.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import exedev

name, _, address = os.environ.get("RESOLVE", "").partition("=")
if name:
    lookup = socket.getaddrinfo
    socket.getaddrinfo = lambda host, *rest, **named: lookup(address if host == name else host, *rest, **named)

URL, IMAGE, *PARTS = sys.argv[1:]
exe = exedev.Client(base_url=URL)


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def new():
    vm = exe.new(
        name="sdk", image=IMAGE, cpu=1, memory="512M", disk=2,
        env={"MODE": "c i"}, tags=["ci"], comment="made by the SDK", timeout=300,
    )
    assert (vm.name, vm.status, vm.tags, vm.comment) == ("sdk", "running", ("ci",), "made by the SDK"), vm
    assert vm.ssh_dest.startswith("sdk@") and vm.https_url.startswith("https://sdk."), (vm.ssh_dest, vm.https_url)
    assert vm.created_at is not None and vm.region, (vm.created_at, vm.region)
    figures = vm.stats(range="7d")
    assert (figures["name"], figures["range"]) == ("sdk", "7d"), figures
    assert figures["points"] is None or figures["points"][0]["cpu_nominal"] > 0, figures
    assert [one.name for one in exe.vms("sd*")] == ["sdk"]
    assert exe.vm("sdk").status == "running"
    raises(exedev.NotFoundError, lambda: exe.vm("nope"))
    assert raises(exedev.APIError, lambda: exe.new(name="sdk")).status == 409
    raises(exedev.NotFoundError, lambda: exedev.VM(exe._t, vm._info.__class__("nope", "", "", "")).run("true"))


def run():
    vm = exe.vm("sdk")
    result = vm.run("echo out; echo err >&2; exit 7")
    assert (result.exit_code, result.stdout, result.stderr) == (7, "out\n", "err\n"), result
    assert vm.run(["printf", "%s", "it's \"quoted\" $HOME"]).stdout == "it's \"quoted\" $HOME"
    assert vm.run("pwd; echo $FLAVOUR", cwd="/tmp", env={"FLAVOUR": "salt"}).stdout == "/tmp\nsalt\n"
    assert vm.run("head -c 100000 /dev/zero | tr '\\0' '\\377'").stdout_bytes == b"\xff" * 100000
    assert vm.run("kill -TERM $$").exit_code == 143
    assert "no such" in raises(exedev.CommandError, lambda: vm.run("echo no such >&2; exit 2", check=True)).stderr
    lines = []
    vm.run("echo one; echo two", on_stdout=lines.append)
    assert lines == ["one", "two"], lines
    text = "x" * 100_000
    assert vm.run(f"printf %s {text} | wc -c").stdout.strip() == "100000"
    give_up(vm)


def give_up(vm):
    """A command that is given up is ended, and what it started in a session of its own too."""
    mark = f"/tmp/{secrets.token_hex(8)}"
    slow = f"setsid sh -c 'while touch {mark}; do sleep 0.2; done' & wait"
    raises(exedev.CommandTimeoutError, lambda: vm.run(slow, timeout=3))
    deadline = time.monotonic() + 30
    while vm.run(f"rm -f {mark}; sleep 1; test -e {mark}").exit_code == 0:
        assert time.monotonic() < deadline, "the command goes on"


def spawn():
    vm = exe.vm("sdk")
    # It runs until it is told to end, so that nothing here depends on time.
    process = vm.spawn("echo up; echo warned >&2; until [ -e /tmp/go ]; do sleep 0.1; done; exit 5", name="job")
    assert process.poll() is None
    assert [one.name for one in vm.processes()] == ["job"]
    raises(exedev.ExeError, lambda: vm.spawn("true", name="job"))
    while (logs := process.logs()).stdout != "up\n":
        pass
    assert logs.stderr == "warned\n", logs
    vm.run("touch /tmp/go")
    result = vm.process("job").wait(timeout=60)
    assert (result.exit_code, result.stdout, result.stderr) == (5, "up\n", "warned\n"), result
    assert process.poll() == 5
    vm.run("rm /tmp/go")
    with vm.spawn("sleep 1000") as worker:
        worker.terminate()
        assert worker.wait(timeout=60).exit_code == 143
    raises(ProcessLookupError, lambda: vm.process("nothing"))


def files():
    vm = exe.vm("sdk")
    content = secrets.token_bytes(300 * 1024)
    vm.write_file("deep/inside/bytes", content, mode=0o640)
    assert vm.read_file("deep/inside/bytes") == content
    assert vm.run("stat -c %a deep/inside/bytes").stdout == "640\n"
    vm.write_file("words", "für Dienstag\n")
    assert vm.read_file("words") == "für Dienstag\n".encode()
    raises(FileNotFoundError, lambda: vm.read_file("nothing"))
    raises(IsADirectoryError, lambda: vm.read_file("deep"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        (source / "part").mkdir(parents=True)
        (source / "part" / "file").write_text("there\n")
        (source / "left.out").write_text("")
        vm.upload(source, "tree", exclude=["*.out"])
        assert vm.run("find tree -type f").stdout == "tree/part/file\n"
        vm.download("deep/inside/bytes", Path(folder, "back"))
        assert Path(folder, "back").read_bytes() == content


def manage():
    vm = exe.vm("sdk")
    vm.write_file("kept", "yes")
    vm.restart(timeout=300)
    assert vm.status == "running" and vm.read_file("kept") == b"yes"
    vm.rename("sdk-two")
    assert vm.ssh_dest.startswith("sdk-two@") and vm.https_url.startswith("https://sdk-two."), vm
    assert vm.run("true").ok
    vm.tag("linux", "web")
    assert set(vm.tags) == {"ci", "linux", "web"}, vm.tags
    vm.untag("linux", "web")
    assert vm.tags == ("ci",), vm.tags
    vm.set_comment("it's renamed")
    vm.refresh()
    assert vm.comment == "it's renamed", vm.comment


def share():
    vm = exe.vm("sdk-two")
    assert vm.share.port(3000)["port"] == 3000
    assert vm.share.port()["port"] == 3000
    assert vm.share.show()["status"] == "private"
    assert vm.share.set_public()["share"] == "public"
    assert vm.share.show()["status"] == "public"
    assert vm.share.set_private()["share"] == "private"
    added = vm.share.add("friend@example.com", message="have a look")
    assert (added["status"], added["shared_with"]) == ("success", "friend@example.com"), added
    [user] = vm.share.show()["users"]
    assert (user["email"], user["status"], user["share_level"]) == ("friend@example.com", "pending", "web"), user
    link = vm.share.add_link()
    assert link["url"].startswith(vm.https_url), link
    assert [one["token"] for one in vm.share.show()["links"]] == [link["token"]]
    assert vm.share.remove_link(link["token"])["status"] == "success"
    assert vm.share.remove("friend@example.com")["status"] == "success"
    shown = vm.share.show()
    assert (shown["users"], shown["links"]) == ([], []), shown


def account():
    whoami = exe.whoami()
    assert any(key["fingerprint"].startswith("SHA256:") for key in whoami["ssh_keys"]), whoami
    key = exe.ssh_key.generate_api_key(label="narrow", cmds=["ls", "share show"], exp="30d")
    with exedev.Client(key["token"], base_url=URL) as narrow:
        assert narrow.vm("sdk-two").share.show()["vm_name"] == "sdk-two"
        raises(exedev.PermissionDeniedError, narrow.whoami)
        raises(exedev.PermissionDeniedError, lambda: narrow.vm("sdk-two").run("true"))
    tagged = exe.ssh_key.generate_api_key(label="tagged", tag="ci")["token"]
    with exedev.Client(tagged, base_url=URL) as ci:
        assert [one.name for one in ci.vms()] == ["sdk-two"]
        assert ci.vm("sdk-two").run("echo hi").stdout == "hi\n"
    raises(exedev.AuthenticationError, exedev.Client("exe1.nonsense", base_url=URL).whoami)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "sdk@test", "-f", path], check=True)
        exe.ssh_key.add(Path(f"{path}.pub").read_text().strip())
    assert "sdk@test" in [one["name"] for one in exe.ssh_key.list()["ssh_keys"]]
    exe.ssh_key.rename("sdk@test", "renamed")
    exe.ssh_key.remove("renamed")


def rm():
    assert exe.delete("nope") == {**exe.delete("nope"), "deleted": [], "failed": ["nope"], "not_found": ["nope"]}
    vm = exe.vm("sdk-two")
    vm.delete()
    raises(exedev.NotFoundError, vm.delete)
    assert exe.vms() == [] or "sdk-two" not in [one.name for one in exe.vms()]


def visit():
    """A little of everything, for a machine that is emulated and slow."""
    vm = exe.vm("sdk")
    result = vm.run("echo $MODE; echo err >&2; exit 7")
    assert (result.exit_code, result.stdout, result.stderr) == (7, "c i\n", "err\n"), result
    give_up(vm)
    process = vm.spawn("until [ -e go ]; do sleep 0.1; done; exit 5")
    assert process.poll() is None
    content = secrets.token_bytes(300 * 1024)
    vm.write_file("go", content)
    assert process.wait(timeout=60).exit_code == 5
    vm.restart(timeout=300)
    assert vm.read_file("go") == content
    vm.rename("sdk-two")
    assert exe.vm("sdk-two").status == "running"


for part in PARTS:
    began = time.monotonic()
    globals()[part]()
    print(part, flush=True)
    print(f"{part}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
