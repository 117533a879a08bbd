# Runs in the root of `minimal` after its packages are installed.
# $1: the login user, $2: the release, $3 $4: mirrors of the archive and of its security updates.
user=$1 suite=$2 mirror=$3 security_mirror=$4

rm -f /etc/apt/sources.list
cat > /etc/apt/sources.list.d/debian.sources <<EOF
Types: deb
URIs: $mirror
Suites: $suite $suite-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: $security_mirror
Suites: $suite-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF

useradd --create-home --uid 1000 --user-group --shell /bin/bash "$user"
# `*` is no password; `!` would be a locked account, which an sshd of the user's own refuses even with a key.
usermod --password '*' "$user"
printf '%s ALL=(ALL:ALL) NOPASSWD:ALL\n' "$user" > "/etc/sudoers.d/$user"
chmod 0440 "/etc/sudoers.d/$user"
# Lingering: `systemctl --user` and rootless containers work in sessions that logind does not know of.
mkdir -p /var/lib/systemd/linger
: > "/var/lib/systemd/linger/$user"

# Identity comes from the platform, on memory; these are only there to be mounted over.
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id
ln -s /etc/machine-id /var/lib/dbus/machine-id
echo localhost > /etc/hostname
: > /etc/resolv.conf
cat > /etc/hosts <<'EOF'
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
EOF
# The machine's own name resolves whatever it is renamed to, or sudo would complain.
sed -i 's/^hosts:.*/hosts: files myhostname dns/' /etc/nsswitch.conf
printf 'LANG=C.UTF-8\n' > /etc/locale.conf
printf 'LANG=C.UTF-8\n' > /etc/default/locale
ln -sf /usr/share/zoneinfo/Etc/UTC /etc/localtime
: > /etc/fstab
mkdir -p /exe

unit_dir=/etc/systemd/system
mask() { for unit in "$@"; do ln -sf /dev/null "$unit_dir/$unit"; done; }

# Nobody logs in on a console: people come over SSH, and a getty on a serial port waits 90 s for its device.
mask getty.target console-getty.service getty@.service serial-getty@.service autovt@.service
# The platform brings network, kernel, modules, root and clock; firmware, consoles and crash stores do not exist.
mask systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service
mask systemd-network-generator.service systemd-pcrphase.service systemd-pcrmachine.service systemd-tpm2-setup.service
mask systemd-tpm2-setup-early.service systemd-pstore.service systemd-firstboot.service systemd-hibernate-resume.service
mask systemd-fsck-root.service systemd-vconsole-setup.service systemd-hwdb-update.service systemd-remount-fs.service
mask systemd-udev-load-credentials.service
mask systemd-boot-random-seed.service systemd-ask-password-console.path systemd-ask-password-wall.path
mask e2scrub_all.timer e2scrub_reap.service
# /tmp on the disk: a tmpfs would take memory from the machine and be written out whenever it sleeps.
mask tmp.mount
# Package lists are refreshed when somebody installs something, not by machines that would wake for it.
mask apt-daily.timer apt-daily-upgrade.timer
mkdir -p "$unit_dir/timers.target.wants"
ln -sf /usr/lib/systemd/system/fstrim.timer "$unit_dir/timers.target.wants/fstrim.timer"
# A weekly trim of a machine that is off at that hour is caught up, but not during its boot.
mkdir -p "$unit_dir/fstrim.timer.d"
cat > "$unit_dir/fstrim.timer.d/berth.conf" <<'EOF'
[Timer]
OnCalendar=
OnCalendar=daily
RandomizedDelaySec=3h
EOF

# Generators look for disks, consoles and hypervisors that a machine never has; each costs a process at boot.
mkdir -p /etc/systemd/system-generators
for generator in getty gpt-auto cryptsetup veritysetup integritysetup hibernate-resume tpm2 bless-boot system-update; do
  path=/usr/lib/systemd/system-generators/systemd-$generator-generator
  if [ -e "$path" ]; then ln -sf /dev/null "/etc/systemd/system-generators/${path##*/}"; fi
done

mkdir -p /etc/systemd/journald.conf.d /etc/systemd/system.conf.d /etc/systemd/logind.conf.d
cat > /etc/systemd/journald.conf.d/berth.conf <<'EOF'
[Journal]
SystemMaxUse=200M
RuntimeMaxUse=32M
ForwardToConsole=no
EOF
cat > /etc/systemd/system.conf.d/berth.conf <<'EOF'
[Manager]
DefaultTimeoutStopSec=20s
EOF
# Processes that people leave running over SSH stay; the machine's power button is the platform's.
cat > /etc/systemd/logind.conf.d/berth.conf <<'EOF'
[Login]
KillUserProcesses=no
NAutoVTs=0
ReserveVT=0
EOF
cat > /etc/sysctl.d/60-berth.conf <<'EOF'
# Editors and dev servers watch whole source trees.
fs.inotify.max_user_watches = 524288
fs.inotify.max_user_instances = 1024
# Panics end the machine with its reason on the console, where the platform sees it.
kernel.panic = 1
EOF

# What tests never use and every emulated boot pays for. base.sh takes these away again.
mask dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount
mask sys-fs-fuse-connections.mount modprobe@configfs.service modprobe@fuse.service modprobe@drm.service
printf '[Journal]\nStorage=volatile\n' > /etc/systemd/journald.conf.d/minimal.conf

rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/cache/debconf/*-old
rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap /etc/apt/apt.conf.d/99mmdebstrap
find /var/log -type f -exec truncate --size 0 {} +
rm -rf /tmp/* /var/tmp/*
# Or every boot would make system users, the linker's cache and the message catalogue again.
touch /usr /etc/.updated /var/.updated
