"""Who answers: checkpoints, rope rules, prompts as token ids, and the backends."""
