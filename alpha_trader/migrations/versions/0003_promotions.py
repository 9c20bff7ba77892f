"""Promotions: every judgement of a recipe and every promotion of a model"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def column(name: str, kind: sa.types.TypeEngine, null: bool = False) -> sa.Column:
    """A column, filled unless said otherwise"""
    return sa.Column(name, kind, nullable=null)


def upgrade() -> None:
    """Make the table"""
    op.create_table(
        "promotions",
        column("id", sa.Integer()),
        column("model_id", sa.String()),
        column("recipe", sa.String()),
        column("act", sa.String(16)),
        column("reason", sa.String()),
        column("passed", sa.Boolean(), null=True),
        column("passport", sa.JSON()),
        column("at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
    )
    op.create_index("ix_promotions_recipe", "promotions", ["recipe"])


def downgrade() -> None:
    """Drop it"""
    op.drop_table("promotions")
