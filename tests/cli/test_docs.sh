#!/bin/bash
# docs/options.md and docs/man are what the command prints from its tables, and scdoc reads the pages.
. "$(dirname "$0")/support/common.sh"
expect 0 "$tree/scripts/make-docs.sh" "$MOEKIT" --check
if command -v scdoc >/dev/null; then
    for page in "$tree"/docs/man/*.scd; do
        scdoc <"$page" >page.1 || complain "scdoc refuses $page"
        says page.1 '^\.TH'
    done
else
    echo 'skipped: scdoc is not here, so the pages were compared but not formatted'
fi
finish
