"""SaSi: a small 3D U-Net trained from a few points of each class (Adethya et al., see the README's references).

The parts of the paper are one module each: `self_supervision`, `infill` and `losses.consistency`; `training` puts
them together, `inference` finds particles with what was trained. Only arrays and torch here; `compute` brings
projects.
"""
