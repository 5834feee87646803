"""The foundation models: official checkpoints found and read safely, SAM built from them, planes as pictures."""
