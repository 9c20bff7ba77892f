"""Kill trading runs with SIGKILL at random moments and run them again; judged by the broker's own book

Run by test_kill.py in a process of its own, because it forks and so must not have trained anything:
    python kill_driver.py ROOT ACCOUNT SEED KILLS
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select

from alpha_trader.books import holdings_of
from alpha_trader.desk import open_broker, sessions_to_trade
from alpha_trader.domain import IntentStatus
from alpha_trader.research import load_bars
from alpha_trader.runner import run_notebook, spawn_run, warm
from alpha_trader.samples import source_for
from alpha_trader.settings import Settings, load_settings
from alpha_trader.store import IntentRow, open_store, reading

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def now() -> datetime:
    return datetime.now(UTC)


def trade(settings: Settings, session: str, account: str) -> str:
    "One trading run to its end, in a child; answers its status"
    parameters = {"session": session, "account": account}
    return spawn_run(settings, "trade", parameters, f"{session} decision", account, now).status


def killed(settings: Settings, session: str, account: str, after: float) -> bool:
    "Begin a trading run in a child and kill it after some seconds; was it still running?"
    pid = os.fork()
    if pid == 0:
        engine = open_store(settings.store_url)
        try:
            run_notebook(
                settings, "trade", {"session": session, "account": account}, f"{session} decision", account, engine, now
            )
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def book(settings: Settings, account: str) -> dict[str, object]:
    "What the broker and our store say, side by side (in a child: reading Parquet starts threads)"
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        broker = open_broker(settings, account, load_bars(settings), None)
        engine = open_store(settings.store_url)
        names = Counter(order.client_id for order in broker.orders(EPOCH))
        with reading(engine) as db:
            rows = db.scalars(select(IntentRow).filter_by(account=account)).all()
        ours = holdings_of(engine, account)
        facts = {
            "theirs": {p.symbol: str(p.quantity) for p in broker.positions()},
            "ours": dict(zip(ours["symbol"], map(str, ours["quantity"]), strict=True)),
            "twice": [name for name, count in names.items() if count > 1],
            "strangers": sum(name is None for name in names),
            "lost": sorted(set(names) - {row.client_id for row in rows} - {None}),
            "open_ended": [row.client_id for row in rows if row.status in UNDECIDED],
            "cash": str(broker.account().cash),
        }
        with os.fdopen(writer, "w") as out:
            json.dump(facts, out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as source:
        text = source.read()
    os.waitpid(pid, 0)
    return json.loads(text)


UNDECIDED = (IntentStatus.PLANNED, IntentStatus.SENDING, IntentStatus.UNKNOWN, IntentStatus.CONFLICT)


def main(root: str, account: str, seed: int, kills: int) -> None:
    settings = load_settings(Path(root), {})
    warm([settings.root / "nbs" / "runs" / "trade.ipynb"])
    sessions = [str(day) for day in sessions_to_trade(settings, source_for(settings).last_session())]
    dice, hit = random.Random(seed), 0
    took = 0.8
    for session in sessions:
        if hit == kills:
            break
        hit += killed(settings, session, account, dice.uniform(0.05, 0.75 * took))
        began = time.monotonic()
        status = trade(settings, session, account)
        took = 0.5 * took + 0.5 * (time.monotonic() - began) if status == "succeeded" else took
        print(json.dumps({"session": session, "status": status, **book(settings, account)}), flush=True)
    print(json.dumps({"kills": hit}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
