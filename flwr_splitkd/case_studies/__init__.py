"""Studies of papers, reproduced with the package's own model of costs. Numpy only, and pure, apart from the figures."""
