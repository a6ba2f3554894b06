#!/bin/sh
# A PostgreSQL whose data lives as long as the container.
set -e
export PGDATA=/tmp/data LC_ALL=C
programs=/usr/lib/postgresql/15/bin
[ -f "$PGDATA/PG_VERSION" ] || "$programs/initdb" --no-sync --auth=trust --username=postgres
exec "$programs/postgres" -c unix_socket_directories=/tmp -c listen_addresses='*' -c jit=off \
	-c fsync=off -c autovacuum=off -c hba_file=/app/hba.conf
