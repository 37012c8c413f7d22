"""Study files into typed, frozen objects."""
