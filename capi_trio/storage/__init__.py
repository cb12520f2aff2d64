"""The database and the audit files: what survives a `kill -9`.

`database` opens SQLite or PostgreSQL and runs work in threads; `keys` reads and writes keys; `usage` stores what
requests cost; `audit_writer` carries the audit rows that every change leaves behind into the audit files; `backup`
copies all of it.
"""
