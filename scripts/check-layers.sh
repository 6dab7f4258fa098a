#!/bin/bash
# check-layers.sh [TREE]: the laws of the tree, read off its text. Prints file:line and the law that is
# broken; exits 1 if there is one. tests/scripts/check_layers.sh shows that each law can be broken.
#
#   includes   a folder sees what the first table below gives it; a special header has its owner
#   machine    conditional compilation lives in src/kernel only (include/ may ask for C++ and GNU C)
#   names      none is pasted by ##: every name greps to its definition
#   size       a file has up to 500 lines (kernels 800), a function up to 60 (kernels 150)
#   base names of sources are unique in the tree
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"

# folder: the quoted includes it may name. The first row that fits a file counts. Public headers, the C
# library and POSIX are open to all; so is a table (*.def).
sees='
include/       ^$
src/flow.h     ^$
src/core/      ^core/
src/kernel/    ^(core|kernel)/
src/device/    ^(core|device)/
src/route/     ^(core/|route/|flow\.h$|kernel/kernel\.h$)
src/dispatch/  ^(core/|dispatch/|flow\.h$|kernel/kernel\.h$)
src/experts/   ^(core/|experts/|flow\.h$|kernel/kernel\.h$)
src/combine/   ^(core/|combine/|flow\.h$|kernel/kernel\.h$)
src/loss/      ^(core/|loss/|flow\.h$|kernel/kernel\.h$)
src/layer/     ^((core|device|route|dispatch|experts|combine|loss|layer)/|flow\.h$|kernel/kernel\.h$)
lm/format/     ^(core|format)/
lm/config/     ^(core|format|config)/
lm/model/      ^(core|format|config|model)/
lm/train/      ^(core|format|config|model|train)/
lm/report/     ^(core|format|config|report)/
tools/         ^(bench/)?[a-z_]*\.h$
examples/      ^$
tests/         .
bench/         .
'
# special <header>: the only files that may include it.
owners='
^(immintrin|x86intrin|cpuid|arm_neon|arm_sve)\.h$  ^(src/kernel/|tests/support/amx_emulated\.h$)
^pthread\.h$                                       ^(src/core/thread\.c$|tests/)
^yaml\.h$                                          ^lm/format/
^jansson\.h$                                       ^(lm|tests)/
^(oniguruma|utf8proc)\.h$                          ^lm/format/
^cuda                                              ^(include/moekit/cuda\.h|src/(device|kernel)/|tests/unit/cuda/|bench/gpu/)
'

{ find include src lm tools examples tests bench -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.def' || true; } \
    2>/dev/null | LC_ALL=C sort |
    sees=$sees owners=$owners awk '
function offence(line, law) {
    printf "%s:%d: %s\n", file, line, law
    ++offences
}

function check_include(name, quoted,    i) {
    if (quoted && name !~ seen_by[row] && name !~ /\.def$/)
        offence(line, "includes \"" name "\", which " folder[row] " does not see")
    for (i = 1; i <= n_owners && !quoted; ++i)
        if (name ~ owned[i] && file !~ owner[i]) offence(line, "includes <" name ">, which belongs to " owner[i])
}

function check_directive(text) {
    if (file ~ /\.(h|cuh)$/ && text ~ /^#ifndef [A-Z0-9_]+_(H|CUH)$/) return
    if (file ~ /^include\// && text ~ /__cplusplus|__GNUC__/) return
    if (text ~ /^#[ \t]*(if|ifdef|ifndef|elif)/ && !kernel)
        offence(line, "conditional compilation outside src/kernel")
}

# A definition opens at the last line that starts in column 0 and closes at a lone brace there.
function check_function(text) {
    if (text ~ /^[A-Za-z_]/) opened = line
    if (text != "}" || !opened) return
    if (line - opened + 1 > function_limit)
        offence(opened, "a function of " line - opened + 1 " lines; the limit is " function_limit)
    opened = 0
}

function check_file(    text, in_define) {
    while ((getline text < file) > 0) {
        ++line
        if (row && match(text, /^#[ \t]*include[ \t]*["<][^">]+/)) {
            text = substr(text, RSTART, RLENGTH)
            check_include(substr(text, match(text, /["<]/) + 1), text ~ /"/)
        }
        if (text ~ /^#/) check_directive(text)
        in_define = text ~ /^#[ \t]*define/ || (in_define && continued)
        continued = text ~ /\\$/
        if (in_define && text ~ /##/) offence(line, "a name pasted by ##")
        check_function(text)
    }
    close(file)
}

BEGIN {
    n_rows = split(ENVIRON["sees"], column) / 2
    for (i = 1; i <= n_rows; ++i) {
        folder[i] = column[2 * i - 1]
        seen_by[i] = column[2 * i]
    }
    n_owners = split(ENVIRON["owners"], column) / 2
    for (i = 1; i <= n_owners; ++i) {
        owned[i] = column[2 * i - 1]
        owner[i] = column[2 * i]
    }
}

{
    file = $0
    line = opened = row = 0
    for (i = n_rows; i >= 1; --i)
        if (index(file, folder[i]) == 1) row = i
    kernel = file ~ /^src\/kernel\//
    function_limit = kernel ? 150 : 60
    file_limit = kernel ? 800 : 500
    if (!row) offence(1, "lies in no folder of the table in scripts/check-layers.sh")

    base = file
    sub(/.*\//, "", base)
    if (base ~ /\.cu?$/ && base in place) offence(1, "a second " base "; the first is " place[base])
    place[base] = file

    check_file()
    if (line > file_limit) offence(line, "a file of " line " lines; the limit is " file_limit)
}

END { exit offences > 0 }'
