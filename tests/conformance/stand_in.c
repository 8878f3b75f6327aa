/* The symbols that TensorRT's Python extension looks for in its libraries. None of them is called: an import,
   and looking at the classes, needs only that they exist. */
#define SYMBOL(name) void *name(void) { return 0; }
SYMBOL(createInferBuilder_INTERNAL)
SYMBOL(createInferRefitter_INTERNAL)
SYMBOL(createInferRuntime_INTERNAL)
SYMBOL(createNvOnnxParserRefitter_INTERNAL)
SYMBOL(createNvOnnxParser_INTERNAL)
SYMBOL(getBuilderPluginRegistry)
SYMBOL(getNvOnnxParserVersion)
SYMBOL(getPluginRegistry)
SYMBOL(initLibNvInferPlugins)
