"""The demonstration: a neighbourhood of measured households on a real ledger.

Runs from the checkout (``script/run``) and is not installed. Everything in here plays what lies
outside of the product: the homes, their meters and inverters, the suppliers' staff. What it talks
to is the product itself, over the same interfaces as a stranger's software would.

* :mod:`demo.homes` decides what flows in each home (pure).
* :mod:`demo.meters` signs and sends the accredited meters' readings.
* :mod:`demo.trading` publishes rates and sells the other homes' surplus.
* :mod:`demo.neighbours` trades among the other homes, by their forecasts, and pays their bills.
* :mod:`demo.inverter` is the HTTP face of the first home's inverter and battery.
* :mod:`demo.history` lets the first home have lived two days before.
* :mod:`demo.home_assistant` makes and starts a real Home Assistant for the first home.
* :mod:`demo.run` puts them together.

:mod:`demo.replay` takes measured months through the same contracts without a network
(:mod:`demo.replay_data`, :mod:`demo.replay_channel`) and writes a report
(:mod:`demo.replay_report`).
"""
