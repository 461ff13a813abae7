#!/usr/bin/env bash
# small_image.sh INTO.sif: builds an image with a shell and a few programs from this machine's files,
# in a second. For tests of Apptainer and Slurm that do not depend on the content of the image.
set -euo pipefail

copy_programs() {
    local root=$1
    local program library
    mkdir -p "$root"/{bin,etc,proc,sys,dev,tmp,var/tmp,root,home,work}
    : >"$root/etc/passwd"
    : >"$root/etc/group"
    for program in bash cat hostname id ls; do
        cp "/usr/bin/$program" "$root/bin/"
        while read -r library; do
            mkdir -p "$root${library%/*}"
            cp -L "$library" "$root$library"
        done < <(ldd "/usr/bin/$program" | grep -o '/[^ ]*')
    done
    ln -s bash "$root/bin/sh"
}

write_recipe() {
    cat <<END
Bootstrap: localimage
From: $1

%post
    test "\$(id -u)" = 0
    echo built >/built
END
}

main() {
    local into=$1
    directory=$(mktemp -d)
    trap 'rm -rf "$directory"' EXIT
    copy_programs "$directory/root"
    write_recipe "$directory/root" >"$directory/small.def"
    apptainer build --force "$into" "$directory/small.def"
}

main "$@"
