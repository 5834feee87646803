"""How the embedded nets are made: simulated tomograms, and a training command for each net."""
