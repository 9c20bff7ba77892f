"""Alembic's entry: runs the migrations on the connection that `alpha_trader.store.migrate` hands over.

That connection is inside a transaction that holds the write lock, so a migration that fails is undone as a whole.
A new migration is made by hand, from `script.py.mako`; `tests/test_store.py` compares its result with the classes.
"""

from alembic import context

attributes = context.config.attributes
if "connection" not in attributes:
    raise SystemExit("migrations run through alpha_trader.store.open_store(url), not through alembic's command line")

context.configure(
    connection=attributes["connection"],
    render_as_batch=True,  # SQLite changes a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
