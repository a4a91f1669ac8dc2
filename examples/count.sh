#!/bin/sh
# Count hits in Tally from a script, each of them once, however often it has to be sent. Needs curl 7.71 or newer.
set -eu

# count EVENT KEY [HIT]: print the new counts. KEY belongs to what you count, such as an order number. It fails if Tally
# rejects the hit, or after 30 seconds. Percent-encode all characters of EVENT but letters, digits, `-`, `_`, `.` and `:`.
count() {
  response=$(curl -sS --max-time 5 --retry 30 --retry-max-time 30 --retry-all-errors -w '\n%{http_code}' \
    -H "Idempotency-Key: $2" ${TALLY_KEY:+-H "Authorization: Bearer $TALLY_KEY"} \
    -d "${3:-}" "${TALLY_URL:-http://127.0.0.1:8000}/event/$1")
  status=${response##*
}
  printf '%s\n' "${response%?"$status"}"
  [ "$status" -lt 300 ]
}

count order order-17 '{"by": 3, "user": "u-17"}'
