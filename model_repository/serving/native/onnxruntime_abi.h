/* What this library uses of ONNX Runtime's C API, whose header no Python package carries.
 *
 * The API is a table of function pointers that only ever grows at its end, so that a library built for one version runs
 * with every later one; a function is named here by its place in it. Source: ONNX Runtime's onnxruntime_c_api.h, API
 * version 17 (release 1.17).
 */
#ifndef PERSONAPLEX_ONNXRUNTIME_ABI_H
#define PERSONAPLEX_ONNXRUNTIME_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { ABI_VERSION = 17 };
enum {
    ELEMENT_ANY = 0,
    ELEMENT_FLOAT = 1,
    ELEMENT_UINT8 = 2,
    ELEMENT_INT8 = 3,
    ELEMENT_INT64 = 7,
    ELEMENT_FLOAT16 = 10,
    ELEMENT_BFLOAT16 = 16
};
enum { REQUIRED = 0, OPTIONAL = 1 };
enum { ATTRIBUTE_INTEGER = 1 };
enum { FAILED = 1, INVALID_ARGUMENT = 2 };

/* Opaque. */
typedef struct Status Status;
typedef struct SessionOptions SessionOptions;
typedef struct OpDomain OpDomain;
typedef struct KernelInfo KernelInfo;
typedef struct KernelContext KernelContext;
typedef struct Tensor Tensor;
typedef struct Shape Shape;
typedef struct ShapeContext ShapeContext;
typedef struct Attribute Attribute;

typedef struct {
    void *const functions[275];
} Api;

typedef struct {
    const Api *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} ApiBase;

typedef struct Op Op;
struct Op {
    uint32_t version;
    void *(*create_kernel)(const Op *, const Api *, const KernelInfo *);
    const char *(*name)(const Op *);
    const char *(*provider)(const Op *);
    int (*input_type)(const Op *, size_t);
    size_t (*inputs)(const Op *);
    int (*output_type)(const Op *, size_t);
    size_t (*outputs)(const Op *);
    void (*compute)(void *, KernelContext *);
    void (*destroy)(void *);
    int (*input_kind)(const Op *, size_t);
    int (*output_kind)(const Op *, size_t);
    int (*input_memory)(const Op *, size_t);
    int (*variadic_input_least)(const Op *);
    int (*variadic_input_same)(const Op *);
    int (*variadic_output_least)(const Op *);
    int (*variadic_output_same)(const Op *);
    Status *(*create_kernel_v2)(const Op *, const Api *, const KernelInfo *, void **);
    Status *(*compute_v2)(void *, KernelContext *);
    Status *(*infer_shape)(const Op *, ShapeContext *);
    int (*first_version)(const Op *);
    int (*last_version)(const Op *);
};

/* The function at PLACE, of type RETURNS (*)(__VA_ARGS__). */
#define API_FUNCTION(PLACE, RETURNS, ...) ((RETURNS(*)(__VA_ARGS__))api->functions[PLACE])

static inline Status *create_status(const Api *api, int code, const char *message) {
    return API_FUNCTION(0, Status *, int, const char *)(code, message);
}
static inline Status *create_domain(const Api *api, const char *name, OpDomain **domain) {
    return API_FUNCTION(26, Status *, const char *, OpDomain **)(name, domain);
}
static inline Status *add_op(const Api *api, OpDomain *domain, const Op *op) {
    return API_FUNCTION(27, Status *, OpDomain *, const Op *)(domain, op);
}
static inline Status *add_domain(const Api *api, SessionOptions *options, OpDomain *domain) {
    return API_FUNCTION(28, Status *, SessionOptions *, OpDomain *)(options, domain);
}
static inline Status *tensor_data(const Api *api, const Tensor *tensor, void **data) {
    return API_FUNCTION(51, Status *, const Tensor *, void **)(tensor, data);
}
static inline Status *set_dimensions(const Api *api, Shape *shape, const int64_t *sizes, size_t count) {
    return API_FUNCTION(59, Status *, Shape *, const int64_t *, size_t)(shape, sizes, count);
}
static inline Status *element_type(const Api *api, const Shape *shape, int *element) {
    return API_FUNCTION(60, Status *, const Shape *, int *)(shape, element);
}
static inline Status *dimension_count(const Api *api, const Shape *shape, size_t *count) {
    return API_FUNCTION(61, Status *, const Shape *, size_t *)(shape, count);
}
static inline Status *dimensions(const Api *api, const Shape *shape, int64_t *sizes, size_t count) {
    return API_FUNCTION(62, Status *, const Shape *, int64_t *, size_t)(shape, sizes, count);
}
static inline Status *element_count(const Api *api, const Shape *shape, size_t *count) {
    return API_FUNCTION(64, Status *, const Shape *, size_t *)(shape, count);
}
static inline Status *tensor_shape(const Api *api, const Tensor *tensor, Shape **shape) {
    return API_FUNCTION(65, Status *, const Tensor *, Shape **)(tensor, shape);
}
static inline Status *attribute_float(const Api *api, const KernelInfo *info, const char *name, float *value) {
    return API_FUNCTION(85, Status *, const KernelInfo *, const char *, float *)(info, name, value);
}
static inline Status *attribute_integer(const Api *api, const KernelInfo *info, const char *name, int64_t *value) {
    return API_FUNCTION(86, Status *, const KernelInfo *, const char *, int64_t *)(info, name, value);
}
static inline Status *context_input(const Api *api, const KernelContext *context, size_t index, const Tensor **tensor) {
    return API_FUNCTION(90, Status *, const KernelContext *, size_t, const Tensor **)(context, index, tensor);
}
static inline Status *context_output(
    const Api *api, KernelContext *context, size_t index, const int64_t *sizes, size_t count, Tensor **tensor
) {
    return API_FUNCTION(91, Status *, KernelContext *, size_t, const int64_t *, size_t, Tensor **)(
        context, index, sizes, count, tensor
    );
}
static inline void release_shape(const Api *api, Shape *shape) { API_FUNCTION(99, void, Shape *)(shape); }
static inline Status *compute_stream(const Api *api, const KernelContext *context, void **stream) {
    return API_FUNCTION(193, Status *, const KernelContext *, void **)(context, stream);
}
static inline Status *input_count(const Api *api, const KernelInfo *info, size_t *count) {
    return API_FUNCTION(230, Status *, const KernelInfo *, size_t *)(info, count);
}
static inline Status *constant_input(
    const Api *api, const KernelInfo *info, size_t index, int *is_constant, const Tensor **tensor
) {
    return API_FUNCTION(249, Status *, const KernelInfo *, size_t, int *, const Tensor **)(
        info, index, is_constant, tensor
    );
}
static inline Status *known_input_shape(const Api *api, const ShapeContext *context, size_t index, Shape **shape) {
    return API_FUNCTION(268, Status *, const ShapeContext *, size_t, Shape **)(context, index, shape);
}
static inline Status *known_attribute(
    const Api *api, const ShapeContext *context, const char *name, const Attribute **attribute
) {
    return API_FUNCTION(269, Status *, const ShapeContext *, const char *, const Attribute **)(context, name, attribute);
}
static inline Status *set_output_shape(const Api *api, const ShapeContext *context, size_t index, const Shape *shape) {
    return API_FUNCTION(270, Status *, const ShapeContext *, size_t, const Shape *)(context, index, shape);
}
static inline Status *read_integer(const Api *api, const Attribute *attribute, int64_t *value) {
    size_t written;
    return API_FUNCTION(272, Status *, const Attribute *, int, void *, size_t, size_t *)(
        attribute, ATTRIBUTE_INTEGER, value, sizeof *value, &written
    );
}
static inline Status *parallel_for(
    const Api *api, const KernelContext *context, void (*work)(void *, size_t), size_t total, size_t batches, void *data
) {
    return API_FUNCTION(274, Status *, const KernelContext *, void (*)(void *, size_t), size_t, size_t, void *)(
        context, work, total, batches, data
    );
}

#endif
