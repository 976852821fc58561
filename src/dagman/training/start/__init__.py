"""What a pretraining starts from: another run, an encoder, or weights of other programs; and the settings of a run."""
