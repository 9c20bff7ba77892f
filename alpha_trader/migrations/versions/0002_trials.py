"""The trial ledger: every try that looked at history"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.BigInteger()  # microseconds since 1970, UTC
WORD = sa.String(16)  # one of a few words


def column(name: str, kind: sa.types.TypeEngine, null: bool = False) -> sa.Column:
    """A column, filled unless said otherwise"""
    return sa.Column(name, kind, nullable=null)


def upgrade() -> None:
    """Make the table"""
    op.create_table(
        "trials",
        column("id", sa.Integer()),
        column("kind", WORD),
        column("settings_hash", sa.String()),
        column("code", sa.String()),
        column("source", sa.String()),
        column("feed", sa.String()),
        column("universe", sa.JSON()),
        column("first_session", sa.Date()),
        column("last_session", sa.Date()),
        column("trials", sa.Integer()),
        column("best", sa.Float(), null=True),
        column("mean", sa.Float(), null=True),
        column("variance", sa.Float(), null=True),
        column("proven", sa.Integer(), null=True),
        column("about", sa.JSON()),
        column("at", MOMENT),
        column("run_id", sa.Integer(), null=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_trials_run_id"),
        sa.PrimaryKeyConstraint("id", name="pk_trials"),
        sa.UniqueConstraint("settings_hash", "code", name="uq_trials_settings_hash_code"),
    )
    op.create_index("ix_trials_source_feed", "trials", ["source", "feed"])


def downgrade() -> None:
    """Drop it"""
    op.drop_table("trials")
