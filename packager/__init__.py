"""From a source video to a published title directory."""
