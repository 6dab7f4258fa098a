#!/bin/bash
# Every public function that takes a pointer is called with NULL by a test of its own.
set -uo pipefail
tests="tests/unit/layer/test_null.c tests/unit/model/test_model_null.c tests/unit/format/test_tokenizer.c"
# shellcheck disable=SC2086
statements=$(cat $tests | tr '\n' ' ' | sed 's:/\*[^*]*\*/::g' | tr ';' '\n')
public=$(awk '/^MOE_API/ { on = 1 } on { all = all " " $0 } on && /;/ { on = 0; print all; all = "" }' include/moekit/*.h |
    grep '([^)]*\*' | sed 's/.*\b\(moe_[a-z0-9_]*\)(.*/\1/')
if [ "$(wc -w <<<"$public")" -lt 80 ]; then
    echo "the headers must declare more than $(wc -w <<<"$public") calls with pointers"
    exit 1
fi
failed=0
for name in $public; do
    if ! grep -q "\b$name(.*NULL" <<<"$statements"; then
        echo "$name: no NULL is tried on it in $tests"
        failed=1
    fi
done
exit $failed
