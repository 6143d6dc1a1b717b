"""evalkit: does accuracy hold beyond the trained context length, and which training method holds it best?"""

__version__ = "0.1.0"
