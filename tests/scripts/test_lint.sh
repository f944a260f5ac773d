#!/bin/bash
# The rules of the house hold, and each of them sees a violation when there is one.
tests/lint/lint.sh
lint=$?
tests/lint/selftest.sh && exit "$lint"
