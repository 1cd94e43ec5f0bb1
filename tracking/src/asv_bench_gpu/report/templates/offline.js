'use strict';
// Pages read from disk may load scripts but not JSON. Each JSON file that asv's pages ask for therefore has a twin
// beside it, <name>.json.js, that stores the same content here; through a web server, nothing changes.
var asvOffline = {};
if (window.location.protocol === 'file:') {
    jQuery.ajaxTransport('+json', function (options) {
        var path = options.url.split('?')[0];
        var key = decodeURIComponent(path);
        var aborted = false;
        return {
            send: function (headers, complete) {
                var script = document.createElement('script');
                script.src = path + '.js';
                script.onload = function () {
                    if (!aborted) {
                        complete(200, 'OK', {json: asvOffline[key]});
                    }
                };
                script.onerror = function () {
                    if (!aborted) {
                        complete(404, 'Not Found', {});
                    }
                };
                document.head.appendChild(script);
            },
            abort: function () {
                aborted = true;
            }
        };
    });
}
