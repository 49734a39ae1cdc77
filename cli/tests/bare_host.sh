# Installs, runs and uninstalls a server on a machine of its own: namespaces for network, mounts and processes, over this
# machine's files with a layer of its own on top. Arguments: a directory for the layer, the program, and a directory for what
# is told. Exits with 77 where the kernel has no such thing.
base=$1 program=$2 told=$3
mkdir -p "$base" && mount -t tmpfs tmpfs "$base" || exit 77
mkdir -p "$base/upper" "$base/work" "$base/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root" || exit 77
root=$base/root
mount --bind /dev "$root/dev" && mount -t proc proc "$root/proc" || exit 77
mount -t tmpfs tmpfs "$root/run" && mount -t tmpfs tmpfs "$root/tmp" || exit 77
cp "$program" "$root/run/keelson"
ip link set lo up || exit 77
ip link add eth0 type veth peer name peer0 && ip link set peer0 up && ip addr add 10.9.9.1/24 dev eth0 && ip link set eth0 up || exit 77

# Directories of this machine that were only passed through count for nothing.
state() {
    (cd "$base/upper" && find . -mindepth 1 -printf '%y %P\n' | while read -r kind path; do
        [ "$kind" = d ] && [ -d "/$path" ] || echo "$kind $path"
    done | sort)
    echo "== links" && ip -o link | sed 's/ state .*//'
    echo "== addresses" && ip -o -4 addr | awk '{print $2, $4}'
    echo "== routes" && ip route && ip rule
    echo "== rules" && nft list ruleset 2>/dev/null
    echo "== mounts" && awk '{print $5}' /proc/self/mountinfo | sort
    echo "== elsewhere" && find "$root/run" "$root/tmp" | sort
}

state >"$told/before"
chroot "$root" /run/keelson install server --cluster-init --hollow 2 --bind-address 10.9.9.1 --vip 10.9.9.100/24 \
    --vip-interface eth0 >"$told/install.log" 2>&1 || exit 1
chroot "$root" /usr/local/bin/keelson server --config /etc/keelson/server.yaml >"$told/server.log" 2>&1 &
server=$!
tries=0
until ip -o addr show dev eth0 | grep -q 10.9.9.100 &&
    chroot "$root" /usr/local/bin/keelson status --kubeconfig /var/lib/keelson/admin.kubeconfig >"$told/status" 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] && kill -0 $server 2>/dev/null || exit 1
    sleep 0.1
done
state >"$told/running"
kill -TERM $server && wait $server
chroot "$root" /run/keelson uninstall --yes >"$told/uninstall.log" 2>&1 || exit 1
state >"$told/after"
