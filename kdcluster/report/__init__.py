"""A finished experiment as one page to show, and as figures for papers: facts, then pictures, then HTML. No torch."""
