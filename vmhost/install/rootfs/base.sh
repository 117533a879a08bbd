# Runs in the root of `base` after its packages are installed. $1: the login user.
user=$1

usermod --append --groups docker "$user"

ln -sf ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
ln -sf ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx
chown -R root:root /usr/local/lib/node_modules
chmod 0755 /usr/local/lib/node_modules/npm/bin/npm-cli.js /usr/local/lib/node_modules/npm/bin/npx-cli.js

unit_dir=/etc/systemd/system
# See the end of minimal.sh.
for unit in dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
  sys-fs-fuse-connections.mount modprobe@configfs.service modprobe@fuse.service modprobe@drm.service; do
  rm -f "$unit_dir/$unit"
done
rm -f /etc/systemd/journald.conf.d/minimal.conf

# Docker starts with the first `docker` command; at boot only where containers wait to be started again.
rm -f "$unit_dir/multi-user.target.wants/docker.service" "$unit_dir/multi-user.target.wants/containerd.service"
mkdir -p "$unit_dir/sockets.target.wants" "$unit_dir/multi-user.target.wants"
ln -sf /usr/lib/systemd/system/docker.socket "$unit_dir/sockets.target.wants/docker.socket"
cat > "$unit_dir/docker-containers.service" <<'EOF'
[Unit]
Description=Start Docker for containers that restart by themselves
ConditionPathExistsGlob=/var/lib/docker/containers/*
After=multi-user.target docker.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/systemctl --no-block start docker.service
EOF
ln -sf ../docker-containers.service "$unit_dir/multi-user.target.wants/docker-containers.service"

# The page index would be built again by every installation; `man` works without.
rm -f /var/lib/man-db/auto-update
ln -sf /dev/null "$unit_dir/man-db.timer"
update-alternatives --set editor /usr/bin/vim.basic

rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/cache/debconf/*-old /var/cache/man/*
find /var/log -type f -exec truncate --size 0 {} +
rm -rf /tmp/* /var/tmp/*
touch /usr /etc/.updated /var/.updated
