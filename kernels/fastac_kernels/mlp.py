"""A multi-layer perceptron forward and backward, on the weights' own memory.

    h_0 = x,   z_l = h_{l-1} W_l^T + b_l,   h_l = f(z_l) for l < L,   y = z_L,   f = tanh or max(0, .)

    dL/dz_L = dL/dy,   dL/dW_l = (dL/dz_l)^T h_{l-1},   dL/db_l = sum over rows of dL/dz_l,
    dL/dz_{l-1} = (dL/dz_l W_l) f'(z_{l-1}),   f' = 1 - h^2 or (h > 0)

The backward pass needs the hidden activations and nothing else. Parameters are given by their addresses, read at every
call, so a network stays what its owner made of it.
"""

from typing import Any

import numpy as np

from fastac_kernels._jit import inline, kernel
from fastac_kernels.memory import array_at, rows_at
from fastac_kernels.products import times, times_transposed, transposed_times
from fastac_kernels.tanh import tanh

TANH, RELU = 0, 1
FLOAT = np.float32(0)
ITEM = 4


@inline
def _activate(z: Any, bias: Any, rows: int, columns: int, activation: int) -> None:
    if activation == TANH:
        for r in range(rows):
            for c in range(columns):
                z[r, c] = tanh(z[r, c] + bias[c])
    else:
        for r in range(rows):
            for c in range(columns):
                sum_ = z[r, c] + bias[c]
                # Written so that NaN stays.
                z[r, c] = FLOAT if sum_ <= FLOAT else sum_


@inline
def _through_activation(gradient: Any, hidden: Any, row: int, of: int, columns: int, activation: int) -> None:
    """A row of gradients, that of a row of activations."""
    one = np.float32(1)
    if activation == TANH:
        for c in range(columns):
            gradient[row, c] *= one - hidden[of, c] * hidden[of, c]
    else:
        for c in range(columns):
            gradient[row, c] = gradient[row, c] if hidden[of, c] > FLOAT else FLOAT


@kernel
def forward_at(
    blas: int, parameters: int, sizes: int, layers: int, x: int, rows: int, hidden: int, outputs: int, activation: int
) -> None:
    """Runs float32 rows through the network.

    Args:
        blas: For `fastac_kernels.products`: an address, or 0.
        parameters: Address of `2 * layers` int64: the addresses of W_1, b_1, W_2, ...
        sizes: Address of `layers + 1` int64: the widths, input first.
        layers: L.
        x: Address of `(rows, sizes[0])`.
        rows: B.
        hidden: Address for the activations of all hidden layers, one layer after the other, `(rows, sizes[l])` each.
        outputs: Address for `(rows, sizes[L])`.
        activation: `TANH` or `RELU`.
    """
    at, widths = array_at(parameters, 2 * layers, 0), array_at(sizes, layers + 1, 0)
    h = rows_at(x, rows, widths[0], FLOAT)
    for layer in range(layers):
        inputs, columns = widths[layer], widths[layer + 1]
        weight = rows_at(at[2 * layer], columns, inputs, FLOAT)
        bias = array_at(at[2 * layer + 1], columns, FLOAT)
        if layer == layers - 1:
            z = rows_at(outputs, rows, columns, FLOAT)
            times_transposed(blas, h, weight, z)
            for r in range(rows):
                for c in range(columns):
                    z[r, c] += bias[c]
        else:
            z = rows_at(hidden, rows, columns, FLOAT)
            times_transposed(blas, h, weight, z)
            _activate(z, bias, rows, columns, activation)
            hidden += ITEM * rows * columns
            h = z


@kernel
def backward_at(
    blas: int,
    parameters: int,
    gradients: int,
    sizes: int,
    layers: int,
    x: int,
    rows: int,
    hidden: int,
    output_gradient: int,
    x_gradient: int,
    work: int,
    activation: int,
) -> None:
    """Computes the gradients of a loss, given that of the outputs and the activations that `forward_at` left.

    Args:
        blas: As for `forward_at`.
        parameters: As for `forward_at`.
        gradients: Address of `2 * layers` int64: where dL/dW_1, dL/db_1, ... go; 0 for those not wanted.
        sizes: As for `forward_at`.
        layers: L.
        x: As for `forward_at`.
        rows: B.
        hidden: What `forward_at` wrote.
        output_gradient: Address of dL/dy, `(rows, sizes[L])`.
        x_gradient: Address for dL/dx, or 0.
        work: Address of room for two `(rows, widest hidden layer)`.
        activation: As for `forward_at`.
    """
    at, widths = array_at(parameters, 2 * layers, 0), array_at(sizes, layers + 1, 0)
    into = array_at(gradients, 2 * layers, 0)
    widest = 0
    for layer in range(1, layers):
        widest = max(widest, widths[layer])
        hidden += ITEM * rows * widths[layer]
    spare = work + ITEM * rows * widest
    dz = rows_at(output_gradient, rows, widths[layers], FLOAT)
    for layer in range(layers - 1, -1, -1):
        inputs, columns = widths[layer], widths[layer + 1]
        if layer > 0:
            hidden -= ITEM * rows * inputs
        h = rows_at(hidden if layer > 0 else x, rows, inputs, FLOAT)
        if into[2 * layer] != 0:
            transposed_times(blas, dz, h, rows_at(into[2 * layer], columns, inputs, FLOAT))
        if into[2 * layer + 1] != 0:
            db = array_at(into[2 * layer + 1], columns, FLOAT)
            for c in range(columns):
                db[c] = FLOAT
            for r in range(rows):
                for c in range(columns):
                    db[c] += dz[r, c]
        weight = rows_at(at[2 * layer], columns, inputs, FLOAT)
        if layer > 0:
            dh = rows_at(work, rows, inputs, FLOAT)
            work, spare = spare, work
            times(blas, dz, weight, dh)
            for r in range(rows):
                _through_activation(dh, h, r, r, inputs, activation)
            dz = dh
        elif x_gradient != 0:
            times(blas, dz, weight, rows_at(x_gradient, rows, inputs, FLOAT))


@kernel
def input_gradient_at(
    blas: int, parameters: int, sizes: int, layers: int, rows: int, hidden: int, output_gradient: int, x_gradient: int,
    work: int, activation: int,
) -> None:  # fmt: skip
    """Computes dL/dx alone: what a critic hands on to the actions that an actor chose.

    Rows whose dL/dy is 0 are left out, so of two critics, of which only the smaller one counts in each row, each takes
    its own share of the rows. Such a row's gradient is 0, whatever the weights are.

    Args:
        blas: As for `forward_at`.
        parameters: As for `forward_at`.
        sizes: As for `forward_at`.
        layers: L.
        rows: B.
        hidden: What `forward_at` wrote.
        output_gradient: Address of dL/dy, `(rows, sizes[L])`.
        x_gradient: Address for dL/dx, `(rows, sizes[0])`.
        work: Address of room for two `(rows, widest layer)`, the input and the output included.
        activation: As for `forward_at`.
    """
    at, widths = array_at(parameters, 2 * layers, 0), array_at(sizes, layers + 1, 0)
    widest = widths[0]
    for layer in range(1, layers + 1):
        widest = max(widest, widths[layer])
        hidden += ITEM * rows * widths[layer] if layer < layers else 0
    spare = work + ITEM * rows * widest
    count, columns = 0, widths[layers]
    given, of_x = rows_at(output_gradient, rows, columns, FLOAT), rows_at(x_gradient, rows, widths[0], FLOAT)
    kept = np.empty(rows, np.int64)
    dz = rows_at(work, rows, columns, FLOAT)
    for r in range(rows):
        any_ = False
        for c in range(columns):
            dz[count, c] = given[r, c]
            any_ |= given[r, c] != FLOAT
        kept[count] = r
        count += 1 if any_ else 0
    for layer in range(layers - 1, -1, -1):
        inputs, columns = widths[layer], widths[layer + 1]
        weight = rows_at(at[2 * layer], columns, inputs, FLOAT)
        dz, dh = rows_at(work, count, columns, FLOAT), rows_at(spare, count, inputs, FLOAT)
        work, spare = spare, work
        if count > 0:
            times(blas, dz, weight, dh)
        if layer > 0:
            hidden -= ITEM * rows * inputs
            h = rows_at(hidden, rows, inputs, FLOAT)
            for r in range(count):
                _through_activation(dh, h, r, kept[r], inputs, activation)
    dx = rows_at(work, count, widths[0], FLOAT)
    for r in range(rows):
        for c in range(widths[0]):
            of_x[r, c] = FLOAT
    for r in range(count):
        for c in range(widths[0]):
            of_x[kept[r], c] = dx[r, c]
