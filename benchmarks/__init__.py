"""Ours and the peers, measured side by side; run it with `scripts/bench`"""
