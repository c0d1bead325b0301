"""The catastrophe study: measure, forecast, prevent, prove."""
