"""The first tables: everything that must survive the death of a process"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCALED = sa.BigInteger()  # dollars or shares, shifted to a whole number
MOMENT = sa.BigInteger()  # microseconds since 1970, UTC
WORD = sa.String(16)  # one of a few words


def column(name: str, kind: sa.types.TypeEngine, null: bool = False) -> sa.Column:
    """A column, filled unless said otherwise"""
    return sa.Column(name, kind, nullable=null)


def account(table: str) -> sa.ForeignKeyConstraint:
    """Every row of the table belongs to an account"""
    return sa.ForeignKeyConstraint(["account"], ["accounts.id"], name=f"fk_{table}_account")


def only_one(name: str, table: str, columns: list[str], where: str) -> None:
    """A unique index over the rows for which `where` holds"""
    op.create_index(name, table, columns, unique=True, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def create_workspace() -> None:
    """Accounts, latches, runs, leases and messages"""
    op.create_table(
        "accounts",
        column("id", sa.String()),
        column("broker", sa.String()),
        column("environment", sa.String()),
        column("currency", sa.String()),
        column("opened_at", MOMENT),
        column("initial_cash", SCALED),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
    )
    op.create_table(
        "system_state",
        column("account", sa.String()),
        column("key", sa.String()),
        column("value", sa.String()),
        column("updated_at", MOMENT),
        sa.PrimaryKeyConstraint("account", "key", name="pk_system_state"),
    )
    op.create_table(
        "runs",
        column("id", sa.Integer()),
        column("notebook", sa.String()),
        column("slot", sa.String()),
        column("account", sa.String()),
        column("status", WORD),
        column("attempt", sa.Integer()),
        column("pid", sa.Integer()),
        column("host", sa.String()),
        column("started_at", MOMENT),
        column("finished_at", MOMENT, null=True),
        column("parameters", sa.JSON()),
        column("git_commit", sa.String()),
        column("package_hash", sa.String()),
        column("settings_hash", sa.String()),
        column("report", sa.String()),
        column("error", sa.String()),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("notebook", "slot", "account", "attempt", name="uq_runs_notebook_slot_account_attempt"),
    )
    only_one("ix_runs_running", "runs", ["notebook", "slot", "account"], where="status = 'running'")
    only_one("ix_runs_succeeded", "runs", ["notebook", "slot", "account"], where="status = 'succeeded'")
    op.create_table(
        "leases",
        column("account", sa.String()),
        column("holder", sa.String()),
        column("pid", sa.Integer()),
        column("host", sa.String()),
        column("fence", sa.Integer()),
        column("acquired_at", MOMENT),
        column("expires_at", MOMENT),
        sa.PrimaryKeyConstraint("account", name="pk_leases"),
    )
    op.create_table(
        "outbox",
        column("id", sa.Integer()),
        column("account", sa.String()),
        column("created_at", MOMENT),
        column("channel", sa.String()),
        column("kind", sa.String()),
        column("body", sa.JSON()),
        column("sent_at", MOMENT, null=True),
        column("dedupe_key", sa.String()),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sa.UniqueConstraint("dedupe_key", name="uq_outbox_dedupe_key"),
    )


def create_knowledge() -> None:
    """Bars, models, and what they said"""
    op.create_table(
        "bars_metadata",
        column("id", sa.Integer()),
        column("symbol", sa.String()),
        column("source", sa.String()),
        column("feed", sa.String()),
        column("adjustment", sa.String()),
        column("first_session", sa.Date()),
        column("last_session", sa.Date()),
        column("rows", sa.Integer()),
        column("fetched_at", MOMENT),
        column("sha", sa.String()),
        sa.PrimaryKeyConstraint("id", name="pk_bars_metadata"),
        sa.UniqueConstraint("symbol", "source", "feed", name="uq_bars_metadata_symbol_source_feed"),
    )
    op.create_table(
        "models",
        column("id", sa.String()),
        column("strategy", sa.String()),
        column("state", WORD),
        column("reason", sa.String()),
        column("source", sa.String()),
        column("feed", sa.String()),
        column("universe", sa.JSON()),
        column("universe_hash", sa.String()),
        column("recipe", sa.String()),
        column("trained_from", sa.Date()),
        column("trained_to", sa.Date()),
        column("data_hash", sa.String()),
        column("scores", sa.JSON()),
        column("path", sa.String()),
        column("created_at", MOMENT),
        column("promoted_at", MOMENT, null=True),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
    )
    only_one("ix_models_champion", "models", ["strategy", "source", "feed", "universe_hash"], where="state = 'champion'")
    op.create_table(
        "signals",
        column("id", sa.Integer()),
        column("run_id", sa.Integer(), null=True),
        column("account", sa.String()),
        column("session", sa.Date()),
        column("symbol", sa.String()),
        column("predicted", sa.Float(), null=True),
        column("agreement", sa.Float(), null=True),
        column("action", sa.String()),
        column("members", sa.JSON()),
        column("features", sa.JSON()),
        column("model_id", sa.String(), null=True),
        account("signals"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_signals_model_id"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_signals_run_id"),
        sa.PrimaryKeyConstraint("id", name="pk_signals"),
        sa.UniqueConstraint("account", "session", "symbol", name="uq_signals_account_session_symbol"),
    )
    op.create_table(
        "decisions",
        column("id", sa.Integer()),
        column("run_id", sa.Integer(), null=True),
        column("account", sa.String()),
        column("session", sa.Date()),
        column("symbol", sa.String()),
        column("quantity", SCALED),
        column("code", sa.Integer()),
        column("reason", sa.String()),
        column("price", SCALED, null=True),
        column("target_value", SCALED, null=True),
        column("rank", sa.Integer()),
        account("decisions"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_decisions_run_id"),
        sa.PrimaryKeyConstraint("id", name="pk_decisions"),
        sa.UniqueConstraint("account", "session", "symbol", name="uq_decisions_account_session_symbol"),
    )


def create_orders() -> None:
    """Wishes, the broker's orders, and what happened"""
    op.create_table(
        "intents",
        column("client_id", sa.String()),
        column("account", sa.String()),
        column("env", sa.String()),
        column("strategy", sa.String()),
        column("session", sa.Date()),
        column("symbol", sa.String()),
        column("side", WORD),
        column("purpose", WORD),
        column("attempt", sa.Integer()),
        column("quantity", SCALED),
        column("order_type", WORD),
        column("limit_price", SCALED, null=True),
        column("stop_price", SCALED, null=True),
        column("oco_group", sa.String(), null=True),
        column("reason", sa.String()),
        column("reference_price", SCALED, null=True),
        column("status", WORD),
        column("broker_id", sa.String(), null=True),
        column("error", sa.String()),
        column("fence", sa.Integer()),
        column("run_id", sa.Integer(), null=True),
        column("created_at", MOMENT),
        column("sent_at", MOMENT, null=True),
        column("updated_at", MOMENT),
        account("intents"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_intents_run_id"),
        sa.PrimaryKeyConstraint("client_id", name="pk_intents"),
        sa.UniqueConstraint("account", "strategy", "session", "symbol", "side", "purpose", "attempt", name="uq_intents_decision"),
    )
    only_one("ix_intents_live", "intents", ["account", "symbol", "side", "purpose"], where="status NOT IN ('canceled', 'dropped', 'expired', 'filled', 'rejected')")
    op.create_table(
        "orders",
        column("account", sa.String()),
        column("broker_id", sa.String()),
        column("client_id", sa.String(), null=True),
        column("symbol", sa.String()),
        column("side", WORD),
        column("quantity", SCALED),
        column("status", WORD),
        column("filled_quantity", SCALED),
        column("average_price", SCALED, null=True),
        column("order_type", WORD),
        column("submitted_at", MOMENT),
        column("updated_at", MOMENT),
        column("reason", sa.String()),
        column("seen_at", MOMENT),
        account("orders"),
        sa.PrimaryKeyConstraint("account", "broker_id", name="pk_orders"),
    )
    op.create_index("ix_orders_account_client_id", "orders", ["account", "client_id"])
    op.create_table(
        "fills",
        column("account", sa.String()),
        column("fill_id", sa.String()),
        column("broker_id", sa.String()),
        column("client_id", sa.String(), null=True),
        column("symbol", sa.String()),
        column("side", WORD),
        column("quantity", SCALED),
        column("price", SCALED),
        column("fee", SCALED),
        column("at", MOMENT),
        column("session", sa.Date()),
        column("booked_at", MOMENT),
        account("fills"),
        sa.PrimaryKeyConstraint("account", "fill_id", name="pk_fills"),
    )


def create_holdings() -> None:
    """What the fills add up to, and the limits that spoke"""
    op.create_table(
        "positions",
        column("account", sa.String()),
        column("symbol", sa.String()),
        column("quantity", SCALED),
        column("average_price", SCALED),
        column("entry_session", sa.Date(), null=True),
        column("half_taken", sa.Boolean()),
        column("last_stop_session", sa.Date(), null=True),
        column("updated_at", MOMENT),
        account("positions"),
        sa.PrimaryKeyConstraint("account", "symbol", name="pk_positions"),
    )
    op.create_table(
        "corporate_actions",
        column("id", sa.Integer()),
        column("account", sa.String()),
        column("symbol", sa.String()),
        column("session", sa.Date()),
        column("kind", sa.String()),
        column("amount", SCALED),
        column("quantity", SCALED),
        column("cash", SCALED),
        column("booked_at", MOMENT),
        account("corporate_actions"),
        sa.PrimaryKeyConstraint("id", name="pk_corporate_actions"),
        sa.UniqueConstraint("account", "symbol", "session", "kind", name="uq_corporate_actions_account_symbol_session_kind"),
    )
    op.create_table(
        "equity_snapshots",
        column("id", sa.Integer()),
        column("account", sa.String()),
        column("session", sa.Date()),
        column("kind", sa.String()),
        column("at", MOMENT),
        column("cash", SCALED),
        column("equity", SCALED),
        account("equity_snapshots"),
        sa.PrimaryKeyConstraint("id", name="pk_equity_snapshots"),
        sa.UniqueConstraint("account", "session", "kind", name="uq_equity_snapshots_account_session_kind"),
    )
    op.create_table(
        "risk_events",
        column("id", sa.Integer()),
        column("account", sa.String()),
        column("session", sa.Date(), null=True),
        column("at", MOMENT),
        column("kind", sa.String()),
        column("symbol", sa.String()),
        column("details", sa.String()),
        account("risk_events"),
        sa.PrimaryKeyConstraint("id", name="pk_risk_events"),
    )
    op.create_index("ix_risk_events_account_at", "risk_events", ["account", "at"])


def upgrade() -> None:
    """Make all tables; runs and models before what refers to them"""
    create_workspace()
    create_knowledge()
    create_orders()
    create_holdings()


def downgrade() -> None:
    """Drop them, referring tables first"""
    for table in (
        "signals", "risk_events", "positions", "orders", "intents", "fills", "equity_snapshots",
        "decisions", "corporate_actions", "system_state", "runs", "outbox", "models", "leases",
        "bars_metadata", "accounts",
    ):
        op.drop_table(table)
