"""A research-to-production workspace of notebooks for trading US stocks with machine learning

Modules:

- `alpha_trader.migrations.env`: Alembic's entry: runs the migrations on the connection that `alpha_trader.store.migrate` hands over."""

__version__ = "0.1.0"
