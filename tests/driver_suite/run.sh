#!/usr/bin/env bash
# The driver's own suite, as docs/sql.md says: run.sh CHECKOUT deno|bun driver|sql|leases.
# CHECKOUT is a clone of github.com/porsager/postgres at v3.4.9. PostgreSQL's programs must be on the PATH, and its ports
# 5432 and 5433 free, but for root, who gets a network of his own. ONLY='["a test"]' runs what it names, EXTRA=1 gives
# pools one connection more than a test asks for, OUT=file gets the results as JSON. The last line is `N of M`.
set -euo pipefail
[ $# = 3 ] || { sed -n '2,5s/^# //p' "$0"; exit 2; }
checkout=$(realpath "$1") runtime=$2 what=$3
project=$(cd "$(dirname "$0")/../.." && pwd)
if [ "$(id -u)" = 0 ] && [ -z "${OWN_NETWORK:-}" ]; then
  OWN_NETWORK=1 exec unshare -n "$0" "$checkout" "$runtime" "$what"
fi
case $what in
driver) from=postgres ;;
sql) from=../../../tests/driver_suite/pool_sql.js ;;
leases) from=../../../tests/driver_suite/leases.js ;;
*) echo "not $what: driver, sql or leases" >&2; exit 2 ;;
esac

bin=$(dirname "$(readlink -f "$(command -v pg_ctl)")")
work=$(mktemp -d)
suite=$project/.tmp/driver_suite/$$
as=()
if [ "$(id -u)" = 0 ]; then
  ip link set lo up
  as=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
  chown nobody:nogroup "$work"
fi
stop() {
  for data in one two; do "${as[@]}" "$bin/pg_ctl" -D "$work/$data" -m immediate stop >/dev/null 2>&1 || true; done
  rm -rf "$work" "$suite"
}
trap stop EXIT

# The two servers, as the driver's workflow for CI has them.
for data in one two; do "${as[@]}" "$bin/initdb" -D "$work/$data" -U postgres --auth=trust -N >/dev/null; done
{
  sed -e '/^host    postgres_js_test    postgres_js_test /d' \
    -e '3i host    all    postgres_js_test    samehost    trust' "$checkout/tests/pg_hba.conf"
  echo 'host all all samehost trust'
} >"$work/hba"
cp "$work/hba" "$work/one/pg_hba.conf"
openssl req -new -x509 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost \
  -keyout "$work/one/server.key" -out "$work/one/server.crt" 2>/dev/null
chmod 600 "$work/one/server.key"
[ "$(id -u)" != 0 ] || chown nobody:nogroup "$work/one"/server.* "$work/one/pg_hba.conf"
start() {
  "${as[@]}" "$bin/pg_ctl" -D "$work/$1" -l "$work/$1.log" -w start \
    -o "-p $2 -k $work -c listen_addresses=127.0.0.1 -c fsync=off ${*:3}" >/dev/null
}
start one 5432 -c ssl=on -c wal_level=logical -c max_prepared_transactions=100 -c max_connections=200
start two 5433

# The suite calls psql, createdb and dropdb, which shall find the first one.
mkdir "$work/bin"
for program in psql createdb dropdb; do
  printf '#!/bin/sh\nPGHOST=%s PGUSER=postgres exec %s "$@"\n' "$work" "$(command -v $program)" >"$work/bin/$program"
  chmod +x "$work/bin/$program"
done

mkdir -p "$suite"
cp "$checkout"/tests/{bootstrap.js,copy.csv,select.sql,select-param.sql} "$suite/"
sed -i "s#'child_process'#'node:child_process'#" "$suite/bootstrap.js"
cp "$project/tests/driver_suite/runner.js" "$suite/test.js"
{
  echo "import { Buffer } from 'node:buffer'; import process from 'node:process';"
  sed -e "s#from '../src/index.js'#from '$from'#" -e "s#from '\(net\|fs\|crypto\)'#from 'node:\1'#" \
    "$checkout/tests/index.js"
} >"$suite/index.js"
export PATH=$work/bin:$PATH PGUSER=postgres PGSOCKET=$work OUT=${OUT:-$work/out.json}
cd "$suite"
case $runtime in
deno) deno run -A --no-check --unsafely-ignore-certificate-errors=localhost index.js ;;
bun) bun index.js ;;
*) echo "not $runtime: deno or bun" >&2; exit 2 ;;
esac
