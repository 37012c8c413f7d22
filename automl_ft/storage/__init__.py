"""The study database: engine options, our own tables, records and the schema version."""
