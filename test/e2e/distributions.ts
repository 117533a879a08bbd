import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gnuTar } from '../../vmhost/images/testing/layers.ts'
import { GUEST_SUITE, openGuestApt } from '../../vmhost/install/apt.ts'
import { run } from '../../vmhost/install/command.ts'

/**
 * What the container images of distributions hold, each as one layer. Nothing in them is for machines: no init, no
 * kernel, no sshd.
 */

/** Debian as its own image is made, `minbase`; from the mirror that set-up uses, once, and kept with the tests' other artifacts. */
export async function debianLayer(): Promise<Buffer> {
  const folder = join(process.env.BERTH_TEST_CACHE || '/var/cache/berth', 'images')
  const kept = join(folder, `debian-${GUEST_SUITE}-1.tar`)
  if (existsSync(kept)) return readFileSync(kept)
  mkdirSync(folder, { recursive: true })
  const work = mkdtempSync(join(tmpdir(), 'berth-debian-'))
  try {
    const apt = await openGuestApt(join(work, 'apt'), { detail: () => {}, done: () => {}, failed: () => {} })
    const made = `${kept}.${process.pid}`
    await run(
      'mmdebstrap',
      [
        ...['--mode=root', '--variant=minbase', '--format=tar', `--keyring=${apt.keyringPath}`],
        ...['--dpkgopt=force-unsafe-io', '--aptopt=Acquire::Languages "none"'],
        ...['doc', 'man', 'locale'].map((name) => `--dpkgopt=path-exclude=/usr/share/${name}/*`),
        `--setup-hook=mkdir -p "$1"/var/lib/apt/lists && cp -a ${apt.listsPath}/. "$1"/var/lib/apt/lists/`,
        ...['--skip=update', GUEST_SUITE, made, join(work, 'apt/sources.list')],
      ],
      { confined: true },
    )
    renameSync(made, kept)
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
  return readFileSync(kept)
}

/** As Alpine's: BusyBox under all its names, `init` among them, musl instead of glibc, and a program that wants it. */
export function alpineLikeLayer(): Buffer {
  return gnuTar(`
    mkdir -p bin sbin lib etc usr/bin usr/sbin root home var/log tmp
    cp "$(command -v busybox)" bin/busybox
    chroot . /bin/busybox --install -s
    cp /lib/x86_64-linux-musl/libc.so lib/ld-musl-x86_64.so.1
    echo 'int puts(const char *); int main(void) { return puts("it is musl") < 0; }' | musl-gcc -x c -o usr/bin/hello -
    echo 'root:x:0:0:root:/root:/bin/ash
nobody:x:65534:65534:nobody:/:/sbin/nologin' > etc/passwd
    echo 'root:*::0:::::
nobody:!::0:::::' > etc/shadow
    printf 'root:x:0:root\\nnobody:x:65534:\\n' > etc/group
    printf '/bin/sh\\n/bin/ash\\n' > etc/shells
    echo 'ID=alpine' > etc/os-release
    echo 'export PS1="\\h\\\\$ "' > etc/profile
    chmod 700 root; chmod 600 etc/shadow; chmod 1777 tmp`)
}

/** As those without a distribution: one static program, which says whom it runs as at port 8080, users without shells. */
export function distrolessLayer(): Buffer {
  return gnuTar(`
    mkdir -p etc home/nonroot tmp usr/share/zoneinfo
    echo 'root:x:0:0:root:/root:/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin
nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' > etc/passwd
    printf 'root:x:0:\\nnobody:x:65534:\\ntty:x:5:\\nstaff:x:50:\\nnonroot:x:65532:\\n' > etc/group
    chown 65532:65532 home/nonroot; chmod 700 home/nonroot; chmod 1777 tmp
    cat > server.c <<'END'
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8080)};
  int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 9) != 0) return 1;
  for (;;) {
    char text[256], where[128];
    int client = accept(listener, NULL, NULL);
    read(client, text, sizeof text);
    int length = snprintf(text, sizeof text, "HTTP/1.0 200 OK\\r\\n\\r\\nuid %d gid %d in %s, home %s\\n", getuid(),
                          getgid(), getcwd(where, sizeof where), getenv("HOME"));
    write(client, text, length);
    close(client);
  }
}
END
    musl-gcc -static -o server server.c 2> /dev/null
    rm server.c`)
}
