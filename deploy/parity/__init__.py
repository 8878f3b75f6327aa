"""How far a backend is from PyTorch in float32: images through both, a certificate, a report."""
