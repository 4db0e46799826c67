"""The trace on disk: schema, writer, reader. Importable without torch."""
