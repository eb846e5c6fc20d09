"""The matrix kernel that is ready before its turn: small problems."""
