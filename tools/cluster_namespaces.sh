#!/bin/bash
# Boards on one machine: network namespaces joined by a bridge, an sshd in each. By hand, as root.
#
# usage: tools/cluster_namespaces.sh COUNT COMMAND...
#
# Runs COMMAND on the first of COUNT boards, pi1 to piCOUNT, each with a name, addresses and a ~/.cache of its own, which
# BOARD_DISK=SIZE bounds (all of them, or SIZE:2 the second alone); else they share the file system. PYLLAMA_BOARDS is
# "pi1,pi2,...". For faults: `ip -n NAME link set eth0 down`, NAME from `ip netns`. BOARD_LINK=1000:0.2 joins them by a
# switch of 1000 Mbit/s that takes 0.2 ms each way (slow_link.c) in place of the bridge; 0:0 is one with neither.
set -euo pipefail
count=$1
shift
id=pl$$
work=$(mktemp -d)
pids=()

clean() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for ((i = 1; i <= count; i++)); do
        for pid in $(ip netns pids "$id-pi$i" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
        ip netns del "$id-pi$i" 2>/dev/null || true
        rm -rf "/etc/netns/$id-pi$i"
    done
    ip link del "$id" 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT

ssh-keygen -q -t ed25519 -N '' -f "$work/host"
ssh-keygen -q -t ed25519 -N '' -f "$work/user"
cp "$work/user.pub" "$work/authorized"
cat >"$work/sshd" <<END
HostKey $work/host
AuthorizedKeysFile $work/authorized
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
END
cat >"$work/ssh" <<END
Host *
IdentityFile $work/user
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
END
echo "127.0.0.1 localhost" >"$work/hosts"
for ((i = 1; i <= count; i++)); do echo "10.86.0.$i pi$i" >>"$work/hosts"; done

# A board's own cache, in the mount namespace that `ip netns exec` makes.
mkdir -p ~/.cache
disk=${BOARD_DISK:-}
cat >"$work/own" <<END
#!/bin/sh
hostname pi\$1
case "$disk" in
*:\$1) mount -t tmpfs -o size="${disk%%:*}" cache ~/.cache ;;
"" | *:*) mkdir -p $work/cache\$1 && mount --bind $work/cache\$1 ~/.cache ;;
*) mount -t tmpfs -o size="$disk" cache ~/.cache ;;
esac
shift
exec "\$@"
END
chmod +x "$work/own"

mkdir -p /run/sshd
ip link add "$id" type bridge
ip link set "$id" up
for ((i = 1; i <= count; i++)); do
    ns=$id-pi$i
    mkdir -p "/etc/netns/$ns"
    cp "$work/hosts" "/etc/netns/$ns/hosts"
    ip netns add "$ns"
    ip link add "${id}v$i" type veth peer name eth0 netns "$ns"
    ip link set "${id}v$i" up
    [ "${BOARD_LINK:-}" ] || ip link set "${id}v$i" master "$id"
    ip -n "$ns" addr add "10.86.0.$i/24" dev eth0
    ip -n "$ns" link set eth0 up
    ip -n "$ns" link set lo up
    ip netns exec "$ns" unshare --uts "$work/own" "$i" /usr/sbin/sshd -D -f "$work/sshd" &
    pids+=($!)
done
# Ahead of the boards, as a switch does not wait for a processor of theirs.
if [ "${BOARD_LINK:-}" ]; then
    cc -O2 -o "$work/slow_link" "$(dirname "$0")/slow_link.c"
    ends=()
    for ((i = 1; i <= count; i++)); do ends+=("${id}v$i"); done
    chrt -f 50 "$work/slow_link" "${BOARD_LINK%%:*}" "${BOARD_LINK##*:}" "${ends[@]}" &
    pids+=($!)
fi
boards=pi1
for ((i = 2; i <= count; i++)); do
    boards+=,pi$i
    for ((tries = 0; tries < 300; tries++)); do # until its sshd listens
        if ip netns exec "$id-pi1" bash -c ": <>/dev/tcp/pi$i/22" 2>/dev/null; then break; fi
        sleep 0.1
    done
done
export PYLLAMA_BOARDS=$boards PYLLAMA_NAMESPACES=$id PRTE_MCA_prte_ssh_agent="ssh -F $work/ssh"
ip netns exec "$id-pi1" unshare --uts "$work/own" 1 "$@"
