"""From stored losses to verdicts: contrasts, rules, the ledger."""
