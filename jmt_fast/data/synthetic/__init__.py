"""Rendered talking faces and synthesised voices with known valence and arousal. See docs/synthetic.md."""

from jmt_fast.data.synthetic.wild import synthesise_affwild2
from jmt_fast.data.synthetic.write import Recipe, synthesise

__all__ = ["Recipe", "synthesise", "synthesise_affwild2"]
