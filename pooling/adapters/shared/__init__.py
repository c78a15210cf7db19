"""What the pools of database servers have in common.

`rotation`    replacing connections when the parameters change; `Answer`: the parameters of one connection
`retrying`    running a unit of work again
`blocks`      ``with db.connection()``
`limits`      how long commands may take
`statistics`  how long queries take
`adapted`     the adaptive size, in the report of ``advise()``
`hooks`       functions of the user's, and weak references to methods

Nothing here knows a driver. Private: users import from `pooling`.
"""
