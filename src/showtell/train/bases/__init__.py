"""The bases: small checkpoints of standard architectures that every experiment starts from."""
