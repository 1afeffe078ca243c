"""Running experiments, keeping what came out, and telling it: runner, ledger, report, comparison, self-test."""
