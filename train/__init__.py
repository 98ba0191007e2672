"""Fine-tune, evaluate and publish adapters: `python -m train --help`."""
