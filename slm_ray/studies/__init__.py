"""Studies: a sweep file becomes many runs and one table; scaling laws; what proxies are worth."""
