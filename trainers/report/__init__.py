"""What a run's report says, as JSON, Markdown and one offline page."""
